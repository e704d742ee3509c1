"""
timm's training loop
====================

The parts of timm's ``train.py`` around a sharpness-aware step: an optimizer and a schedule by name, mixup, drop path,
mixed precision with its loss scaler, clipping, and an average of the weights. Two lines differ from a loop without it.
"""

import timm
import torch
from sklearn.datasets import load_digits
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, NativeScaler, accuracy, dispatch_clip_grad
from torch.utils.data import DataLoader, TensorDataset

import flatwise as fw

EPOCHS = 4
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)

# %%
# Data: 1,797 handwritten digits of 8 x 8 pixels, doubled, so that a network for photographs has something to halve.

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
images = torch.nn.functional.interpolate(images, scale_factor=2).to(device)
labels = torch.tensor(digits.target, device=device)
train, test = (TensorDataset(images[part], labels[part]) for part in (slice(0, 1400), slice(1400, None)))
loader = DataLoader(train, batch_size=50, shuffle=True, drop_last=True)
mixup = Mixup(mixup_alpha=0.2, label_smoothing=0.1, num_classes=10)

# %%
# Model, optimizer, schedule. The first line that is new wraps what ``create_optimizer_v2`` made, whichever it is; its
# parameter groups (no weight decay on norms and biases, learning rates by layer) stay as they are.

model = timm.create_model("test_efficientnet", pretrained=False, in_chans=1, num_classes=10, drop_path_rate=0.1)
model = model.to(device)
optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)
optimizer = fw.SharpnessAware(optimizer, fw.methods.SAM(rho=0.05), model=model)  # line 1
scheduler, _ = create_scheduler_v2(
    optimizer,
    sched="cosine",
    num_epochs=EPOCHS,
    warmup_epochs=1,
    warmup_lr=1e-2,
    step_on_epochs=False,
    updates_per_epoch=len(loader),
)
loss_scaler = NativeScaler(device=device)
scaler = loss_scaler._scaler
criterion = SoftTargetCrossEntropy()
averaged = ModelEmaV3(model, decay=0.95)

# %%
# The loop. timm's loss scaler runs backward and takes the step in one call, and here the passes lie between the two. So
# its parts are written out: the pass scales the loss, and what follows comes once a step. Mixup draws from numpy and
# writes into the images: it comes before the passes, which all have to see the same batch. The average of the weights
# and the schedule are updated once a step, too.


def evaluate(network):
    network.eval()
    with torch.no_grad():
        return float(accuracy(network(test.tensors[0]), test.tensors[1])[0])


updates = 0
for epoch in range(EPOCHS):
    model.train()
    for inputs, targets in loader:
        inputs, targets = mixup(inputs, targets)
        for p in optimizer.passes(scaler):  # line 2
            with torch.autocast(device, torch.float16, enabled=device == "cuda"):
                loss = criterion(model(inputs), targets)
            p.backward(loss)
        scaler.unscale_(optimizer)
        dispatch_clip_grad(model.parameters(), 1.0, mode="norm")
        scaler.step(optimizer)
        scaler.update()
        updates += 1
        averaged.update(model, step=updates)
        scheduler.step_update(num_updates=updates)
    scheduler.step(epoch + 1)
    numbers = f"loss {optimizer.diagnostics['loss']:.3f}, test accuracy {evaluate(model):.1f} %"
    print(f"epoch {epoch + 1}: {numbers}, of the averaged weights {evaluate(averaged.module):.1f} %")

# %%
# A step that overflows in any pass is skipped, and the scale is lowered once; BatchNorm counts a batch once; drop path
# drops the same paths in all passes of a step. ``CheckpointSaver`` and ``resume_checkpoint`` work on this optimizer.
