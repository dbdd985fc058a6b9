"""Two examples of each command, which its `--help` ends with."""

# The words that a command takes beside its flags.
WORDS = {
    "study": "[NAME]",
    "launch": "-- train --workdir=DIR ...",
    "checkpoint": "list | verify | prune",
    "predict": "IMAGE | FOLDER ...",
    "report": "RUN | SWEEP ...",
    "data": "[prepare NAME | inspect NAME]",
    "models": "[NAME | PATTERN]",
    "weights": "import FILE | export FILE",
    "push": "[hf:USER/NAME]",
    "completion": "[bash | zsh | fish]",
}
EXAMPLES = {
    "train": (
        "cnnjax train --config=fashion_mnist_simple_cnn --workdir=runs/fm",
        "cnnjax train --data=photos --workdir=runs/photos",
    ),
    "sweep": (
        "cnnjax sweep --set=optimizer.learning_rate=0.01,0.03,0.1 --seeds=3 --out=runs/rates",
        "cnnjax sweep '--set=optimizer.learning_rate=log_uniform(1e-4, 1e-1)' --random=20 --out=runs/random",
    ),
    "study": ("cnnjax study", "cnnjax study relu_vs_tanh --size=hour"),
    "launch": (
        "cnnjax launch --processes=2 -- train --workdir=runs/two",
        "cnnjax launch --processes=2 --max_restarts=3 -- train --workdir=runs/two --config=FILE",
    ),
    "evaluate": (
        "cnnjax evaluate --workdir=runs/fm --checkpoint=best",
        "cnnjax evaluate --model=resnet50 --weights=torchvision --data=folder:imagenet --split=validation",
    ),
    "replay": ("cnnjax replay --workdir=runs/fm", "cnnjax replay --workdir=runs/fm --step=1000"),
    "checkpoint": (
        "cnnjax checkpoint verify --workdir=runs/fm",
        "cnnjax checkpoint prune --workdir=runs/fm --keep=1",
    ),
    "predict": (
        "cnnjax predict --workdir=runs/fm shoe.png --explain=layer_cam",
        "cnnjax predict --model=resnet50 --weights=torchvision photos/",
    ),
    "explore": (
        "cnnjax explore --workdir=runs/fm",
        "cnnjax explore --model=resnet18 --weights=torchvision --port=0",
    ),
    "report": ("cnnjax report runs/rates", "cnnjax report runs/relu runs/tanh --out=activations.html"),
    "probe": (
        "cnnjax probe --workdir=runs/fm --data=mnist",
        "cnnjax probe --model=resnet18 --weights=torchvision --data=folder:flowers --layer=stage4",
    ),
    "export": (
        "cnnjax export --workdir=runs/fm --format=onnx --out=fm.onnx",
        "cnnjax export --workdir=runs/fm --format=safetensors --out=fm.safetensors",
    ),
    "data": (
        "cnnjax data prepare folder:photos --out=photos256 --short_side=256",
        "cnnjax data inspect fashion_mnist_mini --out=sheet.png --augment=each",
    ),
    "models": ("cnnjax models 'resnet*'", "cnnjax models resnet50 --image_size=160"),
    "compile": (
        "cnnjax compile --config=imagenet_resnet50 --topology=v5e:4x4 --image=256x256x3",
        "cnnjax compile --topology=cpu:8",
    ),
    "weights": (
        "cnnjax weights import resnet50.pth --model=resnet50 --workdir=runs/resnet50",
        "cnnjax weights export resnet50.safetensors --workdir=runs/resnet50",
    ),
    "push": (
        "cnnjax push --workdir=runs/fm hf:USER/NAME",
        "cnnjax push --workdir=runs/fm --out=runs/hub",
    ),
    "bench train": (
        "cnnjax bench train --model=resnet18 --batch_size=32",
        "cnnjax bench train --model=resnet50 --batch_size=32 --dtype=bfloat16 --against=torch",
    ),
    "bench predict": (
        "cnnjax bench predict --model=resnet50 --batch_size=1",
        "cnnjax bench predict --model=mobilenet_v2 --dtype=bfloat16 --against=torch_compile,openvino",
    ),
    "bench data": ("cnnjax bench data", "cnnjax bench data --data=folder:photos --images=2000"),
    "completion": (
        "cnnjax completion bash >> ~/.bashrc",
        "cnnjax completion fish > ~/.config/fish/completions/cnnjax.fish",
    ),
}
