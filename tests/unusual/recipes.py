"""Recipes: wrong types and ranges, keys of other sections, oddities of YAML, names with markup, contradictions."""

from functools import reduce
from pathlib import Path

from deft_hf.recipe import Recipe
from deft_hf.runs.arguments import check_arguments

RECIPE = """
model: {checkpoint: embedded}
method: {name: deft, baselines: [joint], decoder_warmup_steps: 1}
data:
  labels: {names: [wall, door]}
  source: [{folder: town, split: train}]
  validation: [{folder: town, split: val}]
  unseen: [{folder: coast}]
  crop_size: [16, 24]
training: {output_dir: out, max_steps: 2, use_cpu: true}
"""
BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 10)}]\n" for n in range(12))


def changed(old: str, new: str) -> bytes:
    assert old in RECIPE
    return RECIPE.replace(old, new, 1).encode()


def outcome(given: list[str] | bytes | tuple[list[str], str], place: Path) -> object:
    """The value of a key, or `None`, of the recipe with these overrides or this text."""
    given, key = given if isinstance(given, tuple) else (given, None)
    (place / "recipe.yaml").write_bytes(given if isinstance(given, bytes) else RECIPE.encode())
    recipe = Recipe.load("recipe.yaml", [] if isinstance(given, bytes) else given)
    check_arguments(recipe)
    again = place / "again.yaml"
    again.write_text(recipe.to_yaml(), encoding="utf-8")
    assert Recipe.load(again).to_yaml() == recipe.to_yaml(), "what is saved is read back as it was"
    return reduce(_part, key.split("."), recipe) if key else None


def _part(node: object, name: str) -> object:
    if isinstance(node, list | tuple):
        return node[int(name)]
    return node[name] if isinstance(node, dict) else getattr(node, name)


RIGHT = {
    "rate-as-text-of-yaml-1.1": ((["training.learning_rate=6e-5"], "training.learning_rate"), 6e-5),
    "rate-in-quotes": ((["training.learning_rate='6e-5'"], "training.learning_rate"), 6e-5),
    "steps-as-float": ((["training.max_steps=1e2"], "training.max_steps"), 100),
    "steps-with-underscore": ((["training.max_steps=1_000"], "training.max_steps"), 1000),
    "steps-in-hexadecimal": ((["training.max_steps=0x10"], "training.max_steps"), 16),
    "no-is-a-word": ((["training.eval_strategy=no"], "training.eval_strategy"), "no"),
    "on-is-true": ((["data.recolor=on"], "data.recolor"), True),
    "override-twice-last-counts": ((["training.seed=1", "training.seed=2"], "training.seed"), 2),
    "override-with-equals-in-value": ((["publish.license=a=b"], "publish.license"), "a=b"),
    "override-of-an-item": ((["data.unseen.0.name=shore"], "data.unseen.0.name"), "shore"),
    "override-of-a-whole-list": ((["data.unseen=[{streets: night, count: 2}]"], "data.unseen.0.name"), "night"),
    "override-makes-a-section": ((["publish.private=false"], "publish.private"), False),
    "byte-order-mark": ((b"\xef\xbb\xbf" + RECIPE.encode(), "training.max_steps"), 2),
    "windows-line-ends": ((RECIPE.replace("\n", "\r\n").encode(), "training.max_steps"), 2),
    "anchors": (
        (changed("[{folder: town, split: val}]", "[&v {folder: town, split: val}]"), "data.validation.0.split"),
        "val",
    ),
    "merge-keys": (
        (changed("{output_dir: out,", "{<<: {seed: 7, max_steps: 9}, output_dir: out,"), "training.seed"),
        7,
    ),
    "a-document-marker": ((b"---\n" + RECIPE.encode() + b"...\n", "training.max_steps"), 2),
    "json": ((changed("{names: [wall, door]}", '{"names": ["wall", "door"]}'), "data.labels.names"), ["wall", "door"]),
    "class-names-with-markup": (
        (["data.labels.names=['<img src=x onerror=y>', '<!--']"], "data.labels.names"),
        ["<img src=x onerror=y>", "<!--"],
    ),
    "class-names-of-yaml": (
        (["data.labels.names=['no', '- !!python/name:os.system']"], "data.labels.names"),
        ["no", "- !!python/name:os.system"],
    ),
    "class-names-with-line-breaks": (
        (['data.labels.names=["a\\nb", "$\\\\frac$"]'], "data.labels.names"),
        ["a\nb", "$\\frac$"],
    ),
    "class-names-of-other-scripts": ((["data.labels.names=[стена, 扉]"], "data.labels.names"), ["стена", "扉"]),
    "class-names-that-look-like-numbers": ((["data.labels.names=[1e5, '7']"], "data.labels.names"), ["1e5", "7"]),
    "domain-name-with-markup": ((["data.unseen.0.name='<b>&amp;'"], "data.unseen.0.name"), "<b>&amp;"),
    "ids-in-hexadecimal": ((["data.labels.ids={0x0: 0, 0xff: 1}"], "data.labels.ids"), {0: 0, 255: 1}),
    "ids-below-zero": ((["data.labels.ids={-1: 255, 0: 0, 1: 1}"], "data.labels.ids"), {-1: 255, 0: 0, 1: 1}),
    "folder-through-its-parent": ((["data.unseen.0.folder=town/../coast"], "data.unseen.0.name"), "coast"),
    "method-of-one-stage": ((["method.name=joint", "method.baselines=[]"], "method.name"), "joint"),
    "size-as-floats": ((["data.crop_size=[16.0, 24.0]"], "data.crop_size"), (16, 24)),
}

REFUSED = {
    # ---- files
    "empty": (b"", "the file is empty"),
    "comments-alone": (b"# nothing\n", "the file is empty"),
    "a-list": (b"- 1\n- 2\n", "expected the sections"),
    "a-text": (b"hello\n", "expected the sections"),
    "torn": (RECIPE.encode()[:150], "line 6: invalid YAML"),
    "half": (RECIPE[: RECIPE.index("data:")].encode(), "data: missing, expected a mapping"),
    "tab": (RECIPE.encode() + b"\tmodel: {\n", "invalid YAML"),
    "nul": (RECIPE.encode() + b"\x00", "invalid YAML"),
    "utf-16": (RECIPE.encode("utf-16"), "UTF-8"),
    "latin-1": (RECIPE.encode() + "# é\n".encode("latin-1"), "expected YAML text in UTF-8"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "expected YAML text in UTF-8"),
    "twice": (RECIPE.encode() * 2, "is there twice, on lines 2 and 12"),
    "a-key-twice-inside": (
        changed("max_steps: 2", "max_steps: 2, max_steps: 3"),
        "training.max_steps: is there twice",
    ),
    "two-documents": (RECIPE.encode() + b"---\nmodel: {}\n", "invalid YAML"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "bomb": (BOMB.encode() + RECIPE.encode(), "anchors and aliases make more than"),
    "itself": (RECIPE.encode() + b"more: &more [*more]\n", "anchors and aliases make more than"),
    "unknown-alias": (RECIPE.encode() + b"more: *gone\n", "undefined alias"),
    "python-object": (
        RECIPE.encode() + b"run: !!python/object/apply:os.system [touch ran]\n",
        "could not determine a constructor",
    ),
    "python-name": (RECIPE.encode() + b"run: !!python/name:os.system\n", "could not determine a constructor"),
    "python-in-a-value": (
        changed("output_dir: out", "output_dir: !!python/object/new:os.system [touch ran]"),
        "could not determine a constructor",
    ),
    "impossible-date": (RECIPE.encode() + b"when: 2024-13-45\n", "invalid YAML"),
    "a-date-as-key": (RECIPE.encode() + b"2024-10-05: {}\n", "unknown key"),
    "a-number-as-key": (RECIPE.encode() + b"7: {}\n", "7: unknown key"),
    "null-as-key": (RECIPE.encode() + b"null: {}\n", "unknown key"),
    "true-as-key": (RECIPE.encode() + b"yes: {}\n", "unknown key"),
    "a-list-as-key": (RECIPE.encode() + b"? [a, b]\n: c\n", "unhashable key"),
    "a-number-as-key-inside": (changed("max_steps: 2", "max_steps: 2, 7: 8"), "training.7: unknown key"),
    "keys-of-a-method-as-numbers": (changed("name: deft,", "name: deft, 1: 2,"), "method.1: unknown key"),
    "another-version-of-yaml": (b"%YAML 9.9\n---\n" + RECIPE.encode(), "incompatible YAML"),
    "surrogate-in-a-name": (['data.unseen.0.name="\\ud800"'], "data.unseen.0.name"),
    "surrogate-in-a-class": (['data.labels.names=["\\ud800", b]'], "data.labels"),
    "surrogate-in-the-folder": (['training.output_dir="\\ud800"'], "training.output_dir"),
    "nul-in-the-folder": (['training.output_dir="a\\0b"'], "training.output_dir"),
    "nul-in-a-domain": (['data.unseen.0.folder="a\\0b"'], "data.unseen.0.folder"),
    "nul-in-the-root": (['data.root="a\\0b"'], "data.root"),
    "nul-in-the-checkpoint": (['model.checkpoint="a\\0b"'], "model.checkpoint"),
    # ---- overrides
    "override-without-equals": (["training.max_steps"], "found no '='"),
    "override-without-key": (["=3"], "unknown key"),
    "override-with-an-empty-part": (["training.=3"], "training.: unknown key"),
    "override-starts-with-a-dot": ([".training=3"], "unknown key"),
    "override-of-an-item-that-is-not-there": (["data.source.5.folder=x"], "expected the number of one of 1 items"),
    "override-of-a-negative-item": (["data.source.-1.folder=x"], "expected the number of one of 1 items"),
    "override-of-a-digit-that-is-none": (["data.source.².folder=x"], "expected the number of one of 1 items"),
    "override-below-a-text": (["model.checkpoint.x=1"], "expected a mapping or a list there"),
    "override-below-a-number": (["training.max_steps.deep=1"], "expected a mapping or a list there"),
    "override-is-no-yaml": (["training.max_steps=["], "override training.max_steps=[, line 1: invalid YAML"),
    "override-with-python": (["training.seed=!!python/object/apply:os.system [touch ran]"], "could not determine"),
    "override-of-an-unknown-section": (["trainer.max_steps=1"], "trainer: unknown key"),
    "two-wrong-overrides": (["training.max_stepz=1", "data.crop_sise=[1, 1]"], "did you mean crop_size?"),
    # ---- types
    "model-is-a-number": (["model=7"], "model: found 7, expected a mapping"),
    "training-is-null": (["training=null"], "training: found null, expected a mapping"),
    "checkpoint-is-a-number": (["model.checkpoint=3"], "model.checkpoint: found 3, expected text"),
    "checkpoint-is-empty": (["model.checkpoint=''"], "model.checkpoint: found ''"),
    "checkpoint-is-null": (["model.checkpoint=null"], "model.checkpoint: missing"),
    "checkpoint-with-a-space": (["model.checkpoint=a b"], "neither a folder here nor a Hub name"),
    "checkpoint-outside": (["model.checkpoint=../../no/model"], "neither a folder here nor a Hub name"),
    "checkpoint-with-markup": (["model.checkpoint=<script>"], "neither a folder here nor a Hub name"),
    "trust-as-text": (["model.trust_remote_code='yes'"], 'model.trust_remote_code: found "yes", expected true or'),
    "config-is-a-list": (["model.config=[1]"], "model.config: found [1], expected a mapping"),
    "config-with-dates-as-keys": (["model.config=[{2024-10-05: 1}]"], "model.config: found"),
    "method-is-a-list": (["method.name=[deft]"], "method.name: found"),
    "method-is-unknown": (["method.name=daft"], "did you mean deft?"),
    "baselines-are-a-text": (["method.baselines=joint"], "method.baselines: found"),
    "baselines-twice": (["method.baselines=[joint, joint]"], "method.baselines: found joint twice"),
    "baselines-have-the-method": (["method.baselines=[deft]"], "which is already method.name"),
    "warmup-below-zero": (["method.decoder_warmup_steps=-1"], "decoder_warmup_steps"),
    "warmup-is-half-a-step": (["method.decoder_warmup_steps=1.5"], "method.decoder_warmup_steps: found 1.5"),
    "warmup-is-true": (["method.decoder_warmup_steps=true"], "method.decoder_warmup_steps: found true"),
    "decay-above-one": (["method.ema_decay=1.5"], "ema_decay"),
    "decay-is-nan": (["method.ema_decay=.nan"], "method.ema_decay: found NaN"),
    "root-is-a-list": (["data.root=[a]"], "data.root: found"),
    "root-is-nowhere": (["data.root=nowhere"], "data.root: found no folder nowhere"),
    "steps-are-text": (["training.max_steps=many"], 'training.max_steps: found "many", expected a whole number'),
    "steps-are-a-list": (["training.max_steps=[2]"], "training.max_steps: found [2]"),
    "steps-are-infinite": (["training.max_steps=.inf"], "training.max_steps: found"),
    "rate-is-nan": (["training.learning_rate=.nan"], "training.learning_rate: found NaN"),
    "rate-is-too-large-for-a-float": (["training.learning_rate=1e400"], "training.learning_rate: found"),
    "rate-is-a-date": (["training.learning_rate=2024-10-05"], "training.learning_rate: found"),
    "seed-is-true": (["training.seed=true"], "training.seed: found true"),
    "seed-is-null": (["training.seed=null"], "training.seed: found null"),
    "output-is-null": (["training.output_dir=null"], "training.output_dir: found null"),
    "output-is-a-list": (["training.output_dir=[a]"], "training.output_dir: found"),
    "output-is-a-number": (["training.output_dir=7"], "put it in quotes"),
    "private-as-number": (["publish.private=1"], "publish.private: found 1, expected true or false"),
    "license-is-a-list": (["publish.license=[mit]"], "publish.license: found"),
    "a-set": (["data.labels=!!set {a, b}"], "data.labels"),
    "bytes": (["training.output_dir=!!binary aGVsbG8="], "training.output_dir: found"),
    # ---- keys
    "key-misspelt": (["data.crop_sise=[16, 24]"], "did you mean crop_size?"),
    "key-of-another-section": (["training.decoder_warmup_steps=3"], "method.decoder_warmup_steps"),
    "key-of-training-at-the-top": (["max_steps=3"], "it belongs to training: training.max_steps"),
    "key-of-training-in-method": (["method.max_steps=3"], "it belongs to training: training.max_steps"),
    "key-of-older-transformers": (["training.evaluation_strategy=steps"], "transformers 5 calls it eval_strategy"),
    "key-that-the-entry-sets": (["training.push_to_hub=true"], "publish.push_to_hub"),
    "key-with-markup": (["training.<b>=1"], "training.<b>: unknown key"),
    # ---- labels
    "names-are-missing": (["data.labels={ids: {0: 0}}"], "`names` is missing"),
    "names-are-a-text": (["data.labels.names=wall"], "labels.names: found"),
    "names-are-numbers": (["data.labels.names=[1, 2]"], "expected one non-empty name a class"),
    "names-are-words-of-yaml": (["data.labels.names=[yes, no]"], "expected one non-empty name a class"),
    "names-twice": (["data.labels.names=[wall, wall]"], "wall stands there more than once"),
    "one-name": (["data.labels.names=[wall]"], "leaves nothing to tell apart"),
    "an-empty-name": (["data.labels.names=[wall, '']"], "expected one non-empty name a class"),
    "255-names": ([f"data.labels.names={[f'c{n}' for n in range(255)]}"], "masks of train ids hold at most 254"),
    "ids-of-no-class": (["data.labels.ids={0: 0, 1: 9}"], "labels.ids: 1 maps to 9, expected a train id in 0..1"),
    "ids-as-text": (["data.labels.ids={'0': 0}"], "found the raw id '0'"),
    "ids-as-truth": (["data.labels.ids={true: 0}"], "found the raw id True"),
    "ids-too-large": (["data.labels.ids={70000: 0}"], "found the raw id 70000"),
    "ids-are-a-list": (["data.labels.ids=[0, 1]"], "labels.ids: found [0, 1], expected a mapping"),
    "ids-are-empty": (["data.labels.ids={}"], "labels.ids is empty"),
    "colors-of-two-numbers": (["data.labels.colors={'1, 2': 0}"], "labels.colors: found the colour"),
    "colors-out-of-range": (["data.labels.colors={'300, 0, 0': 0}"], "labels.colors: found the colour"),
    "colors-by-name": (["data.labels.colors={red: 0}"], 'expected "red, green, blue" in 0..255'),
    "palette-too-short": (["data.labels.palette=[[0, 0, 0]]"], "found 1 colours for 2 names"),
    "palette-out-of-range": (["data.labels.palette=[[0, 0, 256], [0, 0, 0]]"], "expected three whole numbers"),
    "labels-with-unknown-key": (["data.labels.nmaes=[a]"], "labels: unknown key nmaes"),
    "labels-of-another-preset": (["data.labels=cityscape"], "did you mean cityscapes"),
    "labels-of-an-entry": (["data.unseen.0.labels=cityscapes"], "whose classes are not those of data.labels"),
    # ---- domains
    "no-source": (["data.source=[]"], "expected a list of at least one domain"),
    "source-is-a-mapping": (["data.source={folder: town}"], "data.source: found"),
    "source-is-a-text": (["data.source=[town]"], "expected a mapping with one of the keys folder, hub, streets"),
    "source-of-no-kind": (["data.source=[{floder: town}]"], "did you mean folder?"),
    "source-of-two-kinds": (["data.source=[{folder: town, streets: clear, count: 1}]"], "folder and streets"),
    "folder-is-nowhere": (["data.unseen.0.folder=cost"], "found no folder cost"),
    "folder-is-a-file": (["data.unseen.0.folder=recipe.yaml"], "found no folder recipe.yaml"),
    "images-are-nowhere": (["data.unseen.0.images=rgb"], "images: found no folder coast/rgb"),
    "split-is-a-number": (["data.source.0.split=5"], "put it in quotes"),
    "split-is-unknown": (["data.source.0.split=trian"], "has no split 'trian'"),
    "name-with-a-space": (["data.unseen.0.name=a b"], "without spaces and slashes"),
    "name-with-a-path": (["data.unseen.0.name=../../out"], "without spaces and slashes"),
    "name-with-a-closing-tag": (["data.unseen.0.name=</script>"], "without spaces and slashes"),
    "name-with-a-line-break": (['data.unseen.0.name="a\\nb"'], "without spaces and slashes"),
    "name-is-a-number": (["data.unseen.0.name=7"], "put it in quotes"),
    "name-twice": (["data.unseen.0.name=town"], "found town as the name of several domains"),
    "weight-of-zero": (["data.source.0.weight=0"], "expected a number above 0"),
    "weight-of-nan": (["data.source.0.weight=.nan"], "expected a number above 0"),
    "weight-of-unseen": (["data.unseen.0.weight=2"], "only source domains are drawn by weight"),
    "streets-without-count": (["data.unseen.0={streets: night}"], "count: missing"),
    "streets-of-no-look": (["data.unseen.0={streets: nihgt, count: 1}"], "did you mean night?"),
    "streets-below-zero": (["data.unseen.0={streets: night, count: -1}"], "expected a whole number above 0"),
    "hub-with-a-path": (["data.unseen.0={hub: ../../etc, split: x}"], "expected a Hub name"),
    "corruption-of-source": (["data.source.0.corruption=fog"], "only unseen domains are corrupted"),
    "corruption-too-severe": (["data.unseen.0={folder: coast, corruption: fog, severity: 9}"], "from 1 to 5"),
    "severity-of-nothing": (["data.unseen.0.severity=3"], "without a corruption"),
    # ---- contradictions
    "unseen-is-source": (["data.unseen=[{folder: town, name: new}]"], "found images that town of source"),
    "unseen-is-source-by-another-path": (["data.unseen=[{folder: coast/../town, name: new}]"], "found images that"),
    "unseen-is-source-by-a-link": (["data.unseen=[{folder: link, name: new}]"], "found images that"),
    "validation-is-source": (["data.validation.0.split=train"], "on which no checkpoint can be chosen"),
    "nothing-to-score": (["data.validation=[]", "data.unseen=[]"], "expected at least one domain to score"),
    "checkpoint-and-backbone": (["model.backbone=a/b"], "beside model.checkpoint"),
    "head-beside-checkpoint": (["model.head=upernet"], "model.head: found beside a model.checkpoint"),
    "backbone-without-head": (["model.checkpoint=null", "model.backbone=a/b"], "model.head: missing"),
    "chosen-on-unseen": (["training.metric_for_best_model=coast_mean_iou"], "never selected on"),
    "chosen-on-nothing": (
        ["training.load_best_model_at_end=true", "data.validation=[]"],
        "training may choose a checkpoint on",
    ),
    "two-precisions": (["training.bf16=true", "training.fp16=true"], "At most one of fp16 and bf16"),
    "pushed-nowhere": (["publish.push_to_hub=true"], "publish.repo_id: missing"),
    "pushed-outside": (["publish.repo_id=../x"], "publish.repo_id: found '../x', expected owner/name"),
    "pushed-to-markup": (["publish.repo_id=<b>/x"], "publish.repo_id: found"),
    "licenses-of-nobody": (["publish.data_licenses={hills: mit}"], "found no domain of this name"),
    # ---- ranges
    "crop-of-zero": (["data.crop_size=[0, 16]"], "two whole numbers above 0"),
    "crop-of-one-number": (["data.crop_size=16"], "[height, width]"),
    "crop-of-three-numbers": (["data.crop_size=[16, 16, 3]"], "[height, width]"),
    "crop-of-half-a-pixel": (["data.crop_size=[16.5, 16]"], "two whole numbers above 0"),
    "crop-of-truth": (["data.crop_size=[true, true]"], "two whole numbers above 0"),
    "crop-larger-than-images": (["data.image_size=[4, 4]"], "larger than images ever are"),
    "stride-without-window": (["data.stride=[8, 8]"], "data.stride: found [8, 8] without data.window"),
    "stride-over-window": (["data.window=[8, 8]", "data.stride=[9, 8]"], "expected at most data.window"),
    "scale-falls": (["data.scale=[2, 1]"], "0 < low <= high"),
    "scale-of-zero": (["data.scale=[0, 1]"], "0 < low <= high"),
    "flip-above-one": (["data.flip=1.1"], "a probability, from 0 to 1"),
    "hue-too-strong": (["data.color_jitter=[0.4, 0.4, 0.4, 0.6]"], "the last at most 0.5"),
    "value-range-of-nothing": (["data.value_range=[1, 1]"], "two numbers with low < high"),
    "value-range-without-end": (["data.value_range=[0, .inf]"], "two numbers with low < high"),
    "unreadable-maybe": (["data.unreadable=maybe"], "expected one of stop, skip"),
    "nothing-to-train": (["training.max_steps=0"], "found nothing to train"),
    "schedule-misspelt": (["training.lr_scheduler_type=linaer"], "did you mean linear?"),
    "optimizer-misspelt": (["training.optim=adamw_torhc"], "did you mean adamw_torch"),
    "schedule-of-unknown-arguments": (["training.lr_scheduler_kwargs={pover: 1}"], "lr_scheduler_kwargs"),
    "smoothed-labels": (["training.label_smoothing_factor=0.1"], "label_smoothing_factor is not supported"),
    "batch-found": (["training.auto_find_batch_size=true"], "auto_find_batch_size"),
}
