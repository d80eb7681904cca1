"""CLIP as a teacher: classes as texts, from a folder, and a student that starts so."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import data, distill, interop, methods, models, networks
from jaxkd.losses import cosine_logits
from jaxkd.teachers import class_prototypes

NAMES, TEMPLATES = ["cat", "dog", "owl"], ["a {}", "{} by night", "the {}"]
TOKENS = data.ByteTokenizer()
IMAGES = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of a small CLIP whose texts are bytes."""
    clip = models.clip(
        (12, 1, 3, 20),
        (8, 1, 2, 12),
        features=6,
        image_size=8,
        patch_size=4,
        vocabulary=TOKENS.vocabulary,
        context=16,
        eos=257,
    )
    path = tmp_path_factory.mktemp("clip")
    interop.save_pretrained(path, clip, jax.jit(clip.init)(jax.random.key(0)))
    return path


@pytest.fixture(scope="module")
def clip(folder):
    return interop.load_pretrained(folder)


@pytest.fixture(scope="module")
def prototypes(clip):
    network, variables = clip
    texts = NAMES, TEMPLATES
    return class_prototypes(network, variables, TOKENS, *texts, length=12, batch_size=4)


def test_a_prototype_is_the_direction_of_its_texts_mean(clip, prototypes):
    network, variables = clip
    assert prototypes.shape == (6, 3)
    apply = jax.jit(lambda x: network.apply(variables, x, taps=("text_embeds",))[0])
    for column, name in zip(prototypes.T, NAMES, strict=True):
        rows = [
            # The end of a text that is too long is left out, its last token is not.
            [TOKENS.bos, *template.replace("{}", name).encode()[:10], TOKENS.eos]
            for template in TEMPLATES
        ]
        found = [
            apply({"input_ids": np.asarray([row])}).features["text_embeds"][0]
            for row in rows
        ]
        mean = np.mean(found, axis=0)
        np.testing.assert_allclose(column, mean / np.linalg.norm(mean), atol=1e-5)


@pytest.mark.slow
def test_clip_teaches_what_it_says_zero_shot(clip, prototypes):
    network, variables = clip
    frozen = network.with_variables(variables)
    teacher = networks.with_logits(
        frozen, "image_embeds", lambda x: cosine_logits(x, jnp.asarray(prototypes))
    )
    logits = teacher.apply(variables, {"pixel_values": IMAGES})[0].logits
    embeds = network.apply(variables, {"pixel_values": IMAGES}, taps=("image_embeds",))[
        0
    ].features["image_embeds"]
    np.testing.assert_allclose(logits, 100 * embeds @ prototypes, atol=1e-4)

    student = networks.dual_head(models.mlp(192, (5,), 3), 5, 3)
    batch = {
        "image": IMAGES,
        "teacher_pixel_values": IMAGES,
        "label": jnp.array([0, 1, 0, 0]),
        "labelled": jnp.array([True, True, False, False]),
    }
    program = distill(student, teacher, methods.dho(), optax.sgd(0.1))
    state = program.init(jax.random.key(0), batch)
    _, metrics = jax.jit(program.step)(state, batch)
    cached = distill(student, None, methods.cached(methods.dho()), optax.sgd(0.1))
    batch = {**batch, "teacher_logits": logits}
    state = cached.init(jax.random.key(0), batch)
    wanted = jax.jit(cached.step)(state, batch)[1]
    np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=1e-5)


def test_a_student_that_starts_as_texts_starts_as_its_teacher(clip, prototypes):
    network, variables = clip
    student = networks.dual_head(
        network.with_variables(variables),
        *(6, 3),
        tap="image.projected",
        normalize_to=100.0,
        prototypes=jnp.asarray(prototypes),
    )
    taps = ("ce.logits", "kd.logits", "image.projected")
    own = student.init(jax.random.key(2))
    found = student.apply(own, {"pixel_values": IMAGES}, taps=taps)[0].features
    z = np.asarray(found["image.projected"])
    np.testing.assert_allclose(found["ce.logits"], z @ prototypes, atol=1e-4)
    zero_shot = cosine_logits(jnp.asarray(z), jnp.asarray(prototypes))
    np.testing.assert_allclose(found["kd.logits"], zero_shot, rtol=1e-4, atol=1e-3)


def test_bad_input_is_named(clip, unchecked_shapes):
    network, variables = clip
    for names, templates, message in (
        ([], TEMPLATES, "names has 0 classes"),
        (NAMES, [], "templates 0 texts"),
        (NAMES, ["a photo"], "templates has 'a photo', which is the same for all"),
    ):
        with pytest.raises(ValueError, match=message):
            class_prototypes(network, variables, TOKENS, names, templates)
    none = jax.tree.map(jnp.zeros_like, variables)
    with pytest.raises(ValueError, match="names has 'cat', the mean embedding"):
        class_prototypes(network, none, TOKENS, NAMES, TEMPLATES, length=8)
    with pytest.raises(ValueError, match=r"prototypes has shape \(3, 6\)"):
        networks.dual_head(
            network, 6, 3, tap="image.projected", prototypes=jnp.ones((3, 6))
        )


def test_siglips_texts_are_filled_up_to_its_context():
    siglip = models.siglip(
        (12, 1, 3, 20),
        (8, 1, 2, 12),
        image_size=8,
        patch_size=4,
        vocabulary=TOKENS.vocabulary,
        context=16,
        pad=258,
    )
    variables = jax.jit(siglip.init)(jax.random.key(0))
    found = class_prototypes(siglip, variables, TOKENS, NAMES, ("a {}",), length=12)
    assert found.shape == (12, 3)
    texts = [[TOKENS.bos, *f"a {n}".encode(), TOKENS.eos] for n in NAMES]
    ids = np.asarray([[*text, *[258] * (16 - len(text))] for text in texts])
    outputs, _ = siglip.apply(variables, {"input_ids": ids}, taps=("text_embeds",))
    np.testing.assert_allclose(found.T, outputs.features["text_embeds"], atol=1e-5)
