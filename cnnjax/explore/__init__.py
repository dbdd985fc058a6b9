"""What a network has learned: pure functions that return arrays, and thin pictures of them.

layers        feature maps of any layer by name, the receptive field of a place, the penultimate features
attribution   saliency, SmoothGrad, integrated and guided gradients, Grad-CAM, Grad-CAM++, occlusion, and
              whether they change with the weights
units         first filters, statistics and dead units, the patches and images that excite a unit
landscape     PCA, t-SNE, the loss between two checkpoints and around one
plots         pictures of all these, and of the calibration and confusion matrix of `training.metrics`
"""
