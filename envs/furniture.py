"""Table, cube and cabinet, built from primitives with MjSpec."""

import mujoco

from envs.primitives import BOX, CABINET_CONTACT, CYLINDER, NO_CONTACT, WORLD_CONTACT

TABLE_TOP_M = 0.4
CUBE_RGBA = (0.0, 0.447, 0.741, 1.0)

_CARCASS, _FRONT, _INSIDE = (0.87, 0.87, 0.86, 1), (0.72, 0.6, 0.45, 1), (0.8, 0.72, 0.6, 1)
_METAL = (0.35, 0.36, 0.38, 1)
_DENSITY = 1000.0  # kg/m^3, Isaac Gym's default for what has no mass of its own
_DAMPING, _ARMATURE = 10.0, 0.005  # all four joints (pixmc.md 1.7)

# The Sektion cabinet of PixMC and Isaac Gym: joint frames of its URDF, sizes of its meshes.
_CARCASS_BOXES = [  # (centre, half size) in the cabinet's frame
    ((-0.011, 0.372, 0.0), (0.302, 0.009, 0.39)),
    ((-0.011, -0.372, 0.0), (0.302, 0.009, 0.39)),
    ((-0.307, 0.0, 0.0), (0.006, 0.363, 0.39)),
    ((-0.005, 0.0, 0.3855), (0.292, 0.363, 0.0045)),
    ((-0.005, 0.0, -0.381), (0.292, 0.363, 0.009)),
    ((-0.005, 0.0, 0.118), (0.292, 0.363, 0.004)),
]
_DRAWER_BOXES = [  # in a drawer's frame: floor, sides, back
    ((-0.002, 0.0, -0.05), (0.248, 0.34, 0.006)),
    ((-0.002, 0.334, -0.014), (0.248, 0.006, 0.03)),
    ((-0.002, -0.334, -0.014), (0.248, 0.006, 0.03)),
    ((-0.244, 0.0, -0.014), (0.006, 0.328, 0.03)),
]
_DRAWER_FRONT = ((0.2595, 0.0, 0.0), (0.0135, 0.38, 0.0625))
_HANDLE_BOXES = [  # a bar and two posts; 24 mm between bar and front
    ((0.304, 0.0, 0.0095), (0.007, 0.084, 0.0115)),
    ((0.285, 0.075, 0.0095), (0.012, 0.006, 0.006)),
    ((0.285, -0.075, 0.0095), (0.012, 0.006, 0.006)),
]
_DRAWERS = {"drawer_bottom": (0.0515, 0.0, 0.18795), "drawer_top": (0.0515, 0.0, 0.3172)}
_DOORS = {"door_left": -1.0, "door_right": 1.0}  # which side the hinge is on
HANDLE_POINT_M = (0.305, 0.0, 0.01)  # in the drawer's frame

PROP_EDGE_M = 0.08
_PROP_DENSITY, _PROP_SPACING_M = 400.0, 0.09
_PROP_COLOURS = [(0.85, 0.33, 0.1, 1), (0.93, 0.69, 0.13, 1), (0.49, 0.18, 0.56, 1),
                 (0.47, 0.67, 0.19, 1)]  # fmt: skip
_DRAWER_FLOOR_M = -0.044
PROP_OFFSETS_M = tuple(  # from the cabinet's frame: two by two on the top drawer's floor
    (
        _DRAWERS["drawer_top"][0] + x * _PROP_SPACING_M / 2,
        y * _PROP_SPACING_M / 2,
        _DRAWERS["drawer_top"][2] + _DRAWER_FLOOR_M + PROP_EDGE_M / 2,
    )
    for x in (1, -1)
    for y in (1, -1)
)


def add_table(spec: mujoco.MjSpec) -> None:
    """0.6 x 1.0 x 0.4 m, centred at x = 0.5 m (pixmc.md 1.6)."""
    spec.worldbody.add_geom(
        name="table", type=BOX, pos=[0.5, 0, TABLE_TOP_M / 2], size=[0.3, 0.5, TABLE_TOP_M / 2],
        rgba=[0.92, 0.92, 0.92, 1], **WORLD_CONTACT,
    )  # fmt: skip


def add_cube(spec: mujoco.MjSpec, edge_m: float) -> None:
    """The cube to pick, free on the table; site `cube_centre`."""
    cube = spec.worldbody.add_body(name="cube", pos=[0.5, 0, TABLE_TOP_M + edge_m / 2])
    cube.add_freejoint(name="cube_joint")
    cube.add_geom(
        name="cube", type=BOX, size=[edge_m / 2] * 3, rgba=CUBE_RGBA,
        density=_DENSITY, condim=4, friction=[1.0, 0.02, 0.0001], **WORLD_CONTACT,
    )  # fmt: skip
    cube.add_site(name="cube_centre", size=[0.003] * 3, group=4)


def add_cabinet(spec: mujoco.MjSpec, pos) -> None:
    """Two doors below two drawers, and four props in the top one (pixmc.md 1.7).

    The cabinet is a mocap body, so that each world can have it elsewhere; its parts meet robots
    and props but not each other. Joints, in the order of qpos: `door_left_joint`,
    `door_right_joint`, `drawer_bottom_joint`, `drawer_top_joint`; then `prop_0_joint` to
    `prop_3_joint`. Site `handle` on the top drawer's handle.
    """
    cabinet = spec.worldbody.add_body(name="cabinet", pos=pos, mocap=True)
    for centre, half in _CARCASS_BOXES:
        cabinet.add_geom(type=BOX, pos=centre, size=half, rgba=_CARCASS, **CABINET_CONTACT)
    for name, side in _DOORS.items():
        _add_door(cabinet, name, side)
    for name, place in _DRAWERS.items():
        _add_drawer(cabinet, name, place)
    for i, offset in enumerate(PROP_OFFSETS_M):
        _add_prop(spec, i, [p + o for p, o in zip(pos, offset, strict=True)])


def _add_joint(body, name: str, kind, axis, limits) -> None:
    body.gravcomp = 1.0
    # MjSpec's damping is a polynomial: its first number is the linear one.
    body.add_joint(
        name=f"{name}_joint", type=kind, axis=axis, limited=True, range=limits,
        damping=[_DAMPING, 0, 0], armature=_ARMATURE, solref_limit=[0.01, 1.0],
    )  # fmt: skip


def _add_door(cabinet, name: str, side: float) -> None:
    door = cabinet.add_body(name=name, pos=(0.3162, 0.3757 * side, -0.12973))
    limits = (0.0, 1.57) if side > 0 else (-1.57, 0.0)
    _add_joint(door, name, mujoco.mjtJoint.mjJNT_HINGE, [0, 0, 1], limits)
    door.add_geom(
        type=BOX, pos=(-0.0052, -0.1835 * side, 0), size=(0.0135, 0.182, 0.25), rgba=_FRONT,
        density=_DENSITY, **CABINET_CONTACT,
    )  # fmt: skip
    door.add_geom(
        type=CYLINDER, fromto=[0.008, -0.335 * side, 0.17, 0.035, -0.335 * side, 0.17],
        size=[0.012, 0, 0], rgba=_METAL, density=_DENSITY, **CABINET_CONTACT,
    )  # fmt: skip


def _add_drawer(cabinet, name: str, place) -> None:
    drawer = cabinet.add_body(name=name, pos=place)
    _add_joint(drawer, name, mujoco.mjtJoint.mjJNT_SLIDE, [1, 0, 0], (0.0, 0.4))
    # Nothing can get into the bottom drawer's inside, so it needs no contacts.
    inside = CABINET_CONTACT if name == "drawer_top" else NO_CONTACT
    for boxes, rgba, contact in (
        (_DRAWER_BOXES, _INSIDE, inside),
        ([_DRAWER_FRONT], _FRONT, CABINET_CONTACT),
        (_HANDLE_BOXES, _METAL, CABINET_CONTACT),
    ):
        for centre, half in boxes:
            drawer.add_geom(type=BOX, pos=centre, size=half, rgba=rgba, density=_DENSITY, **contact)
    if name == "drawer_top":
        drawer.add_site(name="handle", pos=HANDLE_POINT_M, size=[0.003] * 3, group=4)


def _add_prop(spec, index: int, pos) -> None:
    prop = spec.worldbody.add_body(name=f"prop_{index}", pos=pos)
    prop.add_freejoint(name=f"prop_{index}_joint")
    prop.add_geom(
        name=f"prop_{index}", type=BOX, size=[PROP_EDGE_M / 2] * 3, rgba=_PROP_COLOURS[index],
        density=_PROP_DENSITY, condim=3, **WORLD_CONTACT,
    )  # fmt: skip
