"""Where arrays lie: logical axes of weights and activations, and meshes of devices."""
