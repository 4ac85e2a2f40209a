"""How verdicts are reached, and what they cannot say, in the words of the results page."""

from math import comb

from attvae.claims.attention_verdicts import BEYOND, SPARSE
from attvae.claims.permutation import LEVEL, SHUFFLES
from attvae.claims.results import ATTENTIVE, BASELINE, DEPTH, EQUAL_TIME
from attvae.claims.verdicts import EQUAL
from attvae.evaluation.elbo import ACTIVE_NATS

METHOD = f"""### How a verdict is reached

Compared are, in the set `{DEPTH}`, the variants `{ATTENTIVE}` (attention in both paths) and `{BASELINE}` (the
baseline), by test figures of the averaged weights. The unit is the training: means and standard errors (n − 1) are
over seeds. A difference is tested by exact permutation: at each depth the trainings are dealt to the two sides in all
ways, and p is the share of these splits with a difference as large, one-sided. Seeds are not paired: trainings of one
seed share the order of images and the binarisation, and to count that as noise errs on the cautious side.

* **Shown**: in the claim's direction with p ≤ {LEVEL}, and what is said below. **Contradicted**: in the other
  direction with p ≤ {LEVEL}. **Not shown at this scale**: neither. **Not measured**: cells are missing, or
  they are of more than one machine and the claim is about seconds.
* A failed cell never helps its side: with one of `{ATTENTIVE}` nothing is shown, with one of `{BASELINE}` nothing is
  contradicted.
* A depth at which a side has no ended cell is left out of a comparison, and named.
* *Likelihood*: the difference in test NELBO, mean over the depths. The NELBO of binary images is the mean over as many
  binarisations of each as `evaluate.binarisations` says (20 by default), the importance-weighted bound is of one: their
  difference is not that of the bounds alone. The bounds of two models are of the same binarisation.
* *Fewer layers*: shown if at all depths but the deepest the baseline needs more layers for the attentive model's
  NELBO, with p ≤ {LEVEL} for the difference there, and the deepest baseline, which has to be there, beats the
  shallowest with p ≤ {LEVEL}: otherwise fewer layers are no advantage. Contradicted if at all depths but the shallowest
  the baseline needs fewer layers, with p ≤ {LEVEL} for the difference there, and its deepest beats its shallowest.
* *Less time*: samples until the mean validation curve, linear between evaluations, is first at the worse of the two
  final NELBOs (curves are of one draw of each image with the same noise at each look: they are shifted to end at the
  final figure, which is of more draws), times seconds of training per image (by the clock, median over the run).
  Shown if the baseline takes longer at every depth, with p ≤ {LEVEL} for the mean logarithm of the ratio, and the
  attentive model is better at equal training time, where the set `{EQUAL_TIME}` has been run and its seconds are
  within {EQUAL:.0%} at each depth: samples times the seconds per image that the same model has in the set `{DEPTH}`,
  where models with and without attention ran side by side. Cells of more than one machine have no seconds that could
  be compared.
* *Upper layers*: the share of active layers, KL above {ACTIVE_NATS} nats per image, in the top half of the hierarchy.
  To be shown, most of them have to be active with attention.
* *Sparse*: the entropy of the attention probabilities as a fraction of the uniform distribution's, mean over layers
  with two or more contexts: below {SPARSE} in both paths in every seed. Above it in all contradicts. The weights
  have to rely on it: with its contribution set to zero the test NELBO is worse (sign test over cells, p ≤ {LEVEL}).
* *Structured*, of the deepest model: at least {BEYOND:.0%} of the probability beyond the nearest context, which is
  all that a model without attention sees, and among the others a pattern that the seeds share: the mean correlation
  between seeds of the probabilities, less their row's mean, is higher than with shuffled rows ({SHUFFLES:,} shuffles,
  p ≤ {LEVEL}), in both paths. Contradicted if less than {BEYOND:.0%} lies beyond the nearest in both. The
  weights have to rely on it, too.
* Other sets enter none of these verdicts. *Likelihood* and *upper layers* are judged anew in the section of a set that
  has both variants."""


def cannot_show(seeds: int) -> str:
    """Of a study with so many seeds."""
    splits = comb(2 * seeds, seeds)
    return f"""### What this cannot show

* {seeds} seeds against {seeds} have {splits:,} splits: at a single depth p is {1 / splits:.2g} or more, so that the
  depths have to agree. Small differences are missed: not shown is not false.
* Each claim is tested at {LEVEL}, without a correction for their number: by Bonferroni, of six claims only a p of
  {LEVEL / 6:.3f} or less would count.
* p is over trainings, for these test images: whether a difference holds on others is not tested.
* Seconds are those of the machine above: what else ran on it moves them, and other hardware has other ratios. Training
  is timed by the clock, with as many runs side by side as the study's `parallel` says; sampling on a CPU in seconds of
  the processor.
* The points of the race lie within a run whose learning rate and KL weight follow its full length: a shorter run, tuned
  as such, may be faster.
* Where deeper models see fewer samples, depths are compared at these lengths, not when trained to the end.
* How much worse the NELBO is with attention's contribution set to zero says that the weights rely on it, not what
  attention is worth: a model that is trained without it makes up for it. That is the comparison with `{BASELINE}`.
* The paper's models are larger, deeper and trained far longer, on other images. What holds here need not hold there,
  nor the other way round."""
