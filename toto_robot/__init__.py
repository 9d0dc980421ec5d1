"""Toto-Robot: frozen video-pretrained features for robot policies."""

from typing import TYPE_CHECKING, Any

from toto_robot._siblings import is_ours

if is_ours("envs"):  # a robot workstation, or a project with an `envs` of its own, has it not
    import envs  # noqa: F401  (registers the Gymnasium ids; light, no simulator)

if TYPE_CHECKING:
    from toto_robot.backbone import FrozenBackbone, load_backbone

__all__ = ["FrozenBackbone", "__version__", "load_backbone"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the backbone on first use, so that `import toto_robot` stays light."""
    if name in {"FrozenBackbone", "load_backbone"}:
        from toto_robot import backbone

        return getattr(backbone, name)
    raise AttributeError(f"module 'toto_robot' has no attribute {name!r}")
