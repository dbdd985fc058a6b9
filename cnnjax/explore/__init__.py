"""What a network has learned: pure functions that return arrays, and thin pictures of them.

- `layers`: feature maps of any layer by name, the receptive field of a place, the penultimate features
- `stages`: the forward pass as a row of convolutions, ReLUs, poolings and additions
- `attribution`: saliency, SmoothGrad, integrated and guided gradients, occlusion, and class activation maps:
  Grad-CAM, Grad-CAM++, HiResCAM, LayerCAM, ScoreCAM, EigenCAM
- `faithfulness`: deletion and insertion curves, and whether a map changes with the weights
- `units`: first filters, statistics and dead units, the patches and images that excite a unit
- `windows`: how one value of a map came about: its window, the products and their sum
- `landscape`: PCA, t-SNE, the loss between two checkpoints and around one
- `plots`: pictures of all these, and of the calibration and confusion matrix of `training.metrics`
"""
