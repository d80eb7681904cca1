"""A served teacher's view of the student's candidates, asked from the train step."""

import base64
import io
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_served_teacher import LOG_PROBS, TEACHER, VOCABULARY, Server, good

from jaxkd import Network, Outputs, data, methods, models, teachers
from jaxkd.generation import GREEDY
from jaxkd.programs.on_policy import on_policy

K, NEW = 3, 2
# Rows of prompts of two and three tokens, and answers of two and one.
IDS = np.array([[0, 4, 7, 2], [5, 1, 9, 3]])
REAL = np.array([[0, 1, 1, 1], [1, 1, 1, 1]])
MASK = np.array([[0, 0, 1, 1], [0, 0, 1, 0]])
ROWS = {"input_ids": IDS, "attention_mask": REAL, "mask": MASK}
ROWS = {name: jnp.asarray(x, jnp.int32) for name, x in ROWS.items()}
TABLE = np.random.default_rng(5).normal(0, 2, (VOCABULARY, VOCABULARY)).astype("f4")
STUDENT = Network.from_apply(
    lambda key: {"table": jnp.asarray(TABLE)},
    lambda params, ids: params["table"][ids],
    reads=("input_ids",),
)
NAMED = np.argsort(-TABLE, axis=1, kind="stable")[:, :K]
PROMPTS = data.Prompts(
    data.Documents("prompts", np.array([4, 7, 5, 1, 9]), np.array([0, 2, 5]), 11), 3, 0
)


def generated(number, request):
    """Answer as vLLM's /inference/v1/generate does for candidates."""
    settings, prompt = request["sampling_params"], request["token_ids"]
    start, asked = (
        settings["prompt_logprob_start"],
        settings["prompt_logprob_token_ids"],
    )
    before = prompt[start:-1]
    scores = np.stack([LOG_PROBS[b, x] for b, x in zip(before, asked, strict=True)])
    return 200, {"prompt_token_id_logprobs": npy(scores.astype("f4"))}


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def serve():
    servers = []

    def start(answer=good, protocol="completions", **options):
        servers.append(Server(answer))
        options = {"retries": 1, "backoff": 0.01, "timeout": 5.0, **options}
        served = teachers.ServedTeacher(PROMPTS, servers[-1].url, "large", K, **options)
        ask = teachers.scored_candidates(served, STUDENT, protocol)
        return servers[-1], ask

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def asked(ask, rows=ROWS):
    variables = STUDENT.init(jax.random.key(0))
    return jax.device_get(jax.jit(ask)(variables, rows))


def test_completions_tell_of_the_candidates_that_they_know(serve):
    server, ask = serve()
    batch = asked(ask)
    assert {path for path, *_ in server.requests} == {"/v1/completions"}
    sent = sorted(request["prompt"] for *_, request in server.requests)
    assert sent == [[4, 7, 2, 2], [5, 1, 9, 3, 3]]
    after = {(0, 2): (7, 2), (0, 3): (2, 2), (1, 2): (9, 3)}
    for place, (token, drawn) in after.items():
        best = np.argsort(-LOG_PROBS[token], kind="stable")[:K].tolist()
        told = {*best, drawn}
        kept = [x for x in NAMED[token].tolist() if x in told]
        filled = [x for x in sorted(told, key=lambda x: -LOG_PROBS[token, x])]
        expected = [*dict.fromkeys([*kept, *filled])][:K]
        assert batch["teacher_ids"][place].tolist() == expected
        np.testing.assert_allclose(
            batch["teacher_log_probs"][place], LOG_PROBS[token, expected], rtol=1e-6
        )
    assert np.isfinite(batch["teacher_log_probs"]).all()
    assert all(len({*ids}) == K for ids in batch["teacher_ids"].reshape(-1, K).tolist())


def test_generate_tells_of_all_candidates(serve):
    server, ask = serve(generated, "generate")
    batch = asked(ask)
    counted = MASK > 0
    expected = NAMED[IDS[counted]]
    assert (batch["teacher_ids"][counted] == expected).all()
    right = np.take_along_axis(LOG_PROBS[IDS[counted]], expected, axis=1)
    np.testing.assert_allclose(batch["teacher_log_probs"][counted], right, rtol=1e-6)
    assert {path for path, *_ in server.requests} == {"/inference/v1/generate"}
    starts = [r["sampling_params"]["prompt_logprob_start"] for *_, r in server.requests]
    assert sorted(starts) == [1, 2]


def test_the_loss_has_the_candidates_and_the_rest_as_classes(serve):
    for answer, protocol in ((good, "completions"), (generated, "generate")):
        _, ask = serve(answer, protocol)
        batch = asked(ask)
        student = Outputs(jnp.asarray(TABLE)[IDS])
        found = loss(student, jax.tree.map(jnp.asarray, batch))
        q, p = (
            np.exp(np.asarray(jax.nn.log_softmax(x), np.float64))
            for x in (TABLE, LOG_PROBS)
        )
        expected = 0.0
        for place in np.argwhere(MASK > 0):
            token, ids = IDS[tuple(place)], batch["teacher_ids"][tuple(place)]
            mine, other = (
                np.append(x[token, ids], 1 - x[token, ids].sum()) for x in (q, p)
            )
            expected += (mine * np.log(mine / other)).sum()
        np.testing.assert_allclose(found.value, expected / MASK.sum(), rtol=2e-4)


@jax.jit
def loss(student, batch):
    method = methods.topk_kd(reverse=True)
    return method.loss({"state": {}}, student, Outputs(None), batch, None, 0)[0]


def changed(scores):
    def answer(number, request):
        asked = np.array(request["sampling_params"]["prompt_logprob_token_ids"])
        return 200, {"prompt_token_id_logprobs": scores(asked.shape)}

    return answer


BROKEN = {
    "no matrix": (lambda *_: (200, {}), "without prompt_token_id_logprobs"),
    "null": (changed(lambda shape: None), "without prompt_token_id_logprobs"),
    "no base64": (changed(lambda shape: "§"), "without prompt_token_id_logprobs"),
    "no array": (changed(lambda shape: "QUJD"), "that can be used"),
    "fewer rows": (
        changed(lambda shape: npy(np.full((shape[0] - 1, K), -9, "f4"))),
        "of shape",
    ),
    "float64": (changed(lambda shape: npy(np.full(shape, -9.0))), "used"),
    "objects": (
        changed(lambda shape: npy(np.full(shape, -9, "S4"))),
        "that can be used",
    ),
    "NaN": (changed(lambda shape: npy(np.full(shape, np.nan, "f4"))), "gave nan as"),
    "logits": (changed(lambda shape: npy(np.full(shape, 3.0, "f4"))), "gave 3.0 as"),
    "certain": (changed(lambda shape: npy(np.zeros(shape, "f4"))), "sum to 3, not"),
    "refusal": (lambda *_: (400, b"no such field"), "refused.*no such field.*k = 3"),
    "elsewhere": (lambda *_: (302, b""), "leads elsewhere"),
}


@pytest.mark.parametrize(("answer", "message"), BROKEN.values(), ids=BROKEN)
def test_bad_answers_stop_the_step_with_the_url(serve, answer, message):
    server, ask = serve(answer, "generate", connections=1)
    with pytest.raises(Exception, match=f"(?s){server.url}/inference.*{message}"):
        asked(ask)


def test_a_server_that_hangs_stops_the_step(serve):
    release = threading.Event()

    def hang(number, request):
        release.wait(5)
        return good(number, request)

    _, ask = serve(hang, timeout=0.1, retries=1)
    with pytest.raises(Exception, match=r"did not answer in 2 attempts"):
        asked(ask)
    release.set()


def test_a_row_without_an_answer_is_not_sent(serve):
    server, ask = serve()
    batch = asked(ask, {**ROWS, "mask": ROWS["mask"].at[0].set(0)})
    assert len(server.requests) == 1
    assert np.isfinite(batch["teacher_log_probs"]).all()


@pytest.mark.slow
def test_a_student_learns_from_its_own_answers(serve):
    """Of all tokens the step is the one with the teacher in it."""
    server, _ = serve()
    served = teachers.ServedTeacher(PROMPTS, server.url, "large", VOCABULARY)
    student = models.llama(VOCABULARY, 8, 1, 2, 16, scan=False)
    batch, found = PROMPTS.take(np.arange(2)), []
    for teacher, k, ask in (
        (None, None, teachers.scored_candidates(served, student)),
        (TEACHER, VOCABULARY, None),
    ):
        program = on_policy(
            student,
            teacher,
            methods.topk_kd(k, reverse=True),
            optax.sgd(0.1),
            max_new_tokens=NEW,
            ask=ask,
            student_share=1.0,
            sampling=GREEDY,
            accumulate=2,
        )
        state = jax.jit(program.init)(jax.random.key(0), batch)
        program.check(state, batch)
        assert len(server.requests) == (0 if ask else 2)
        state, metrics = jax.jit(program.step)(state, batch)
        found.append((metrics, state.student["params"]))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_teacher_that_is_asked_does_not_write():
    network = models.llama(VOCABULARY, 8, 1, 2, 16, scan=False)
    for teacher, options in (
        (None, {}),
        (network, {"ask": lambda variables, rows: rows, "teacher_share": 0.5}),
        (network, {"ask": lambda variables, rows: rows, "teacher_mixture": 0.2}),
    ):
        with pytest.raises(ValueError, match="give a teacher or ask, and with ask no"):
            on_policy(
                network,
                teacher,
                methods.kd(),
                optax.sgd(0.1),
                max_new_tokens=NEW,
                **options,
            )
