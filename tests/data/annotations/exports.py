"""Small label exports, drawn: an image of a size, and shapes with corners on whole pixels, whose masks are known."""

import json
import re
import shutil

import numpy as np
from PIL import Image

SIZE = (40, 30)  # width, height

# What `two_shapes` draw: a house under a tree.
HOUSE = [10, 10, 30, 10, 30, 20, 10, 20]
TREE = [24, 5, 38, 5, 38, 15, 24, 15]


def expected(house=1, tree=2):
    """The mask of a house with a tree in front of it."""
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[10:20, 10:30] = house
    mask[5:15, 24:38] = tree
    return mask


def image(path, size=SIZE, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def pairs(ring):
    return [ring[index : index + 2] for index in range(0, len(ring), 2)]


def relative(ring):
    return [value / SIZE[index % 2] for index, value in enumerate(ring)]


# --- one export of each format: a.png has a house and a tree, b.png nothing


def coco(root, folder="", name="annotations.json", annotations=None, **changes):
    """One COCO file; ids have gaps and no order."""
    for file in ("a.png", "b.png"):
        image(root / folder / file)
    content = {
        "images": [
            {"id": 7, "file_name": "b.png", "width": SIZE[0], "height": SIZE[1]},
            {"id": 3, "file_name": "a.png", "width": SIZE[0], "height": SIZE[1]},
        ],
        "categories": [{"id": 9, "name": "tree"}, {"id": 4, "name": "house"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 4, "segmentation": [HOUSE], "iscrowd": 0},
            {"id": 2, "image_id": 3, "category_id": 9, "segmentation": [TREE], "iscrowd": 0},
        ]
        if annotations is None
        else annotations,
    } | changes
    return write(root / folder / name, content)


def yolo(root, splits=("train", "val"), rows=None, names=("house", "tree")):
    lines = [f"0 {' '.join(map(str, relative(HOUSE)))}", f"1 {' '.join(map(str, relative(TREE)))}"]
    for split in splits:
        for file in ("a.png", "b.png"):
            image(root / split / "images" / file)
        write(root / split / "labels" / "a.txt", "\n".join(lines if rows is None else rows) + "\n")
        write(root / split / "labels" / "b.txt", "")
    paths = "".join(f"{split}: ../{split}/images\n" for split in splits)
    return write(root / "data.yaml", f"{paths}nc: {len(names)}\nnames: {list(names)}\n")


def labelme(root, shapes=None, **changes):
    """One JSON file beside each image."""
    drawn = [
        {"label": "house", "points": pairs(HOUSE), "shape_type": "polygon", "group_id": None},
        {"label": "tree", "points": [[38, 15], [24, 5]], "shape_type": "rectangle"},
    ]
    for name, own in (("a", drawn if shapes is None else shapes), ("b", [])):
        image(root / f"{name}.png")
        content = {"version": "5.5.0", "flags": {}, "shapes": own, "imagePath": f"{name}.png", "imageData": None}
        write(root / f"{name}.json", content | {"imageHeight": SIZE[1], "imageWidth": SIZE[0]} | changes)


CVAT_LABELS = "<label><name>house</name></label><label><name>tree</name></label>"


def cvat(root, shapes=None, subset="", labels=CVAT_LABELS, more=""):
    """`annotations.xml` of a task; the tree comes first, but lies on top."""
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in pairs(HOUSE))
    drawn = (
        '<box label="tree" source="manual" occluded="0" xtl="24.00" ytl="5.00" xbr="38.00" ybr="15.00" z_order="3"/>'
        f'<polygon label="house" source="manual" occluded="0" points="{points}" z_order="0"></polygon>'
    )
    images = ""
    for index, (file, own) in enumerate((("a.png", drawn if shapes is None else shapes), ("b.png", ""))):
        image(root / "images" / subset / file)
        place = f'subset="{subset}"' if subset else ""
        images += f'<image id="{index}" name="{file}" {place} width="{SIZE[0]}" height="{SIZE[1]}">{own}</image>'
    text = f"<annotations><version>1.1</version><meta><task><labels>{labels}</labels></task></meta>{images}{more}"
    return write(root / "annotations.xml", f'<?xml version="1.0" encoding="utf-8"?>\n{text}</annotations>')


def percent(ring):
    return pairs([100 * value for value in relative(ring)])


def result(kind, value, label, **changes):
    own = {"from_name": "label", "to_name": "image", "type": kind, "original_width": SIZE[0]}
    own |= {"original_height": SIZE[1], "image_rotation": 0, "value": value | {kind: [label]}}
    return own | changes


def label_studio(root, results=None, paths=("/data/local-files/?d=far%20away/a.png", "/data/upload/1/0a1b2c3d-b.png")):
    box = {"x": 60, "y": 5 / 0.3, "width": 35, "height": 10 / 0.3, "rotation": 0}
    drawn = [
        result("polygonlabels", {"points": percent(HOUSE), "closed": True}, "house"),
        result("rectanglelabels", box, "tree"),
    ]
    image(root / "far away" / "a.png")
    image(root / "b.png")
    tasks = []
    for index, (path, own) in enumerate(zip(paths, (drawn if results is None else results, []), strict=True)):
        annotation = {"id": index, "result": own, "was_cancelled": False, "ground_truth": False}
        tasks.append({"id": index, "annotations": [annotation], "predictions": [], "data": {"image": path}})
    return write(root / "project-1.json", tasks)


def roboflow_masks(root, splits=("train", "valid"), classes="Pixel Value, Class\n0, background\n1, house\n2, tree\n"):
    for split in splits:
        for name, mask in (("a_jpg.rf.0a1b", expected()), ("b_jpg.rf.2c3d", 0 * expected())):
            image(root / split / f"{name}.png")
            Image.fromarray(mask).save(root / split / f"{name}_mask.png")
        write(root / split / "_classes.csv", classes)


VOC_COLORS = {0: (0, 0, 0), 1: (250, 50, 83), 2: (61, 245, 61)}


def voc(root, mode="RGB", lists=(("train", "a\n"), ("val", "b\n"), ("trainval", "a\nb\n")), mask=None):
    colors = np.zeros((256, 3), np.uint8)
    colors[[*VOC_COLORS]] = [*VOC_COLORS.values()]
    colors[255] = 224, 224, 192
    for name, ids in (("a", expected() if mask is None else mask), ("b", 0 * expected())):
        image(root / "JPEGImages" / f"{name}.png")
        picture = Image.fromarray(ids if mode != "RGB" else colors[ids])
        if mode == "P":
            picture.putpalette(colors.ravel().tolist())
        for folder in ("SegmentationClass", "SegmentationObject"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            picture.save(root / folder / f"{name}.png")
    names = zip(("background", "house", "tree"), VOC_COLORS.values(), strict=True)
    lines = [f"{name}:{red},{green},{blue}::" for name, (red, green, blue) in names]
    write(root / "labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *lines, ""]))
    for name, content in lists:
        write(root / "ImageSets" / "Segmentation" / f"{name}.txt", content)


def supervisely(root, objects=None, sets=("ds0", "ds1")):
    drawn = [
        {"classTitle": "house", "geometryType": "polygon", "points": {"exterior": pairs(HOUSE), "interior": []}},
        {
            "classTitle": "tree",
            "geometryType": "rectangle",
            "points": {"exterior": [[24, 5], [37, 14]], "interior": []},
        },
    ]
    classes = [{"title": "house", "shape": "polygon", "color": "#F6FF00"}, {"title": "tree", "shape": "any"}]
    write(root / "meta.json", {"classes": classes, "tags": []})
    for place in sets:
        for name, own in (("a", drawn if objects is None else objects), ("b", [])):
            image(root / place / "img" / f"{name}.png")
            content = {"description": "", "tags": [], "size": {"height": SIZE[1], "width": SIZE[0]}, "objects": own}
            write(root / place / "ann" / f"{name}.png.json", content)


EXPORTS = {
    "coco": coco,
    "cvat": cvat,
    "label_studio": label_studio,
    "labelme": labelme,
    "roboflow": roboflow_masks,
    "supervisely": supervisely,
    "voc": voc,
    "yolo": yolo,
}


def several(form, root, count=4):
    """An export of a format whose image with a house and a tree is there under more names, a0.png and so on."""
    EXPORTS[form](root)
    more = [f"a{number}" for number in range(count)]
    if form == "coco":
        content = json.loads((root / "annotations.json").read_text("utf-8"))
        (one,) = (each for each in content["images"] if each["file_name"] == "a.png")
        shapes = [each for each in content["annotations"] if each["image_id"] == one["id"]]
        for index, name in enumerate(more):
            content["images"].append(one | {"id": 100 + index, "file_name": f"{name}.png"})
            content["annotations"] += [each | {"id": 0, "image_id": 100 + index} for each in shapes]
        write(root / "annotations.json", content)
    if form == "cvat":
        text = (root / "annotations.xml").read_text("utf-8")
        (one,) = re.findall(r"<image [^>]*a\.png.*?</image>", text)
        write(
            root / "annotations.xml", text.replace(one, one + "".join(one.replace("a.png", f"{n}.png") for n in more))
        )
    if form == "label_studio":
        tasks = json.loads((root / "project-1.json").read_text("utf-8"))
        again = [json.loads(json.dumps(tasks[0]).replace("a.png", f"{name}.png")) for name in more]
        write(root / "project-1.json", tasks + again)
    for path in [path for path in root.rglob("a*") if re.match(r"a[._]", path.name)]:
        for index, name in enumerate(more):
            copy = path.with_name(path.name.replace("a", name, 1))
            if path.suffix == ".json":
                write(copy, path.read_text("utf-8").replace("a.png", f"{name}.png"))
            elif path.suffix == ".png":  # another picture, or the same mask
                is_photo = Image.open(path).mode == "RGB" and "Segmentation" not in str(path.parent)
                image(copy, seed=index + 1) if is_photo else shutil.copy(path, copy)
            else:
                shutil.copy(path, copy)
    for split, name in (("train", "a0\na1\na2\n"), ("val", "a3\n")) if form == "voc" else ():
        write(root / "ImageSets" / "Segmentation" / f"{split}.txt", name)
    return root
