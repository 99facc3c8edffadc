"""From a run to use: a learner to adapt to one's own examples, scikit-learn estimators, labels for folders of images.

    learner = load(run, *, checkpoint="best", device="auto", num_inner_steps=None) -> Learner
    adapted = learner.adapt(x, y, *, num_inner_steps=None) -> AdaptedLearner
    adapted.predict(x), adapted.predict_proba(x), adapted.outputs(x)

    labelled = label_images(learner, support, query, ...)
    write_csv(labelled, path), draw_gallery(labelled, path), as_text(labelled)

`metalearn.use.estimators` has `FewShotClassifier` and `FewShotRegressor`; it is not imported here, because it needs
scikit-learn.
"""

from metalearn.use.gallery import draw_gallery
from metalearn.use.labelling import Labelled, label_images
from metalearn.use.learner import AdaptedLearner, Learner
from metalearn.use.loading import load
from metalearn.use.table import as_text, write_csv

__all__ = [
    "AdaptedLearner",
    "Labelled",
    "Learner",
    "as_text",
    "draw_gallery",
    "label_images",
    "load",
    "write_csv",
]
