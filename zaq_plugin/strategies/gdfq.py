"""GDFQ: a conditional generator that remembers the training data's distribution.

Xu et al., Generative Low-bitwidth Data Free Quantization (ECCV 2020, arXiv 2003.03603). The
generator makes an image for a label: cross-entropy of the float model towards it (equation 2) plus
the BatchNorm-statistics loss (equation 3). The student learns from the float model's answers and
from the labels (equation 7); activation ranges are frozen after the generator's warm-up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zaq_plugin.strategies.images import classes_of
from zaq_plugin.strategies.parts import LeastSquaresWeights, MinMaxActivations
from zaq_plugin.strategies.reconstruction import refuse_compound
from zaq_plugin.strategies.stage import ImageStage, Stage, Strategy, Work
from zaq_plugin.student.fake_quantizers import set_switches
from zaq_plugin.student.modes import frozen, to_evaluation
from zaq_plugin.zero_shot import Generator, ImageFormat, ZeroShotConfig
from zaq_plugin.zero_shot.discrepancy import teacher_divergence
from zaq_plugin.zero_shot.judge import Judge
from zaq_plugin.zero_shot.learner import Learner
from zaq_plugin.zero_shot.statistics import BatchNormLoss

GAME = "gdfq game"


class ConditionalGenerator(nn.Module):
    """``G(z, y)``: the noise is multiplied by an embedding of the label.

    Args:
        images: Their format.
        classes: Number of labels.
    """

    def __init__(self, images: ImageFormat, classes: int) -> None:
        super().__init__()
        self.generator = Generator(images.shape, statistics=images.statistics)
        self.embedding = nn.Embedding(classes, self.generator.latent_dim)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Noise (n, latent) and labels (n,) to images (n, C, H, W)."""
        images: Tensor = self.generator(z * self.embedding(labels))
        return self.generator.statistics.clamp(images)


@dataclass
class Game:
    """The generator with what trains it.

    Attributes:
        generator: G.
        model: The float model with its BatchNorms; its parameters get no gradient.
        classes: Number of labels.
        rng: Of noise and labels.
        batch: Images at a time.
        bn_weight: Weight of the BatchNorm-statistics loss.
    """

    generator: ConditionalGenerator
    model: nn.Module
    classes: int
    rng: torch.Generator
    batch: int
    bn_weight: float = 0.1

    def __post_init__(self) -> None:
        self.bn_loss = BatchNormLoss(self.model)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=1e-3)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Images with gradients to G, and their labels."""
        first = next(self.generator.parameters())
        labels = torch.randint(self.classes, (self.batch,), generator=self.rng).to(first.device)
        z = self.generator.generator.noise(self.batch, self.rng, first.device)
        return self.generator(z, labels), labels

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """``CE(P(x), y) + w L_BN(x)``, the generator's."""
        with self.bn_loss.recording():
            logits = self.model(images.clone())
        loss: Tensor = F.cross_entropy(logits, labels) + self.bn_weight * self.bn_loss.value()
        return loss

    def step(self) -> tuple[Tensor, Tensor]:
        """One step of G; returns its images, without gradients, and labels."""
        images, labels = self.draw()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(images, labels).backward()
        self.optimizer.step()
        return images.detach(), labels

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """(count, C, H, W) images."""
        batches = [self.draw()[0] for _ in range(-(-count // self.batch))]
        return torch.cat(batches)[:count]


@dataclass(frozen=True)
class Conditional(ImageStage):
    """Images of the conditional generator after its warm-up.

    Attributes:
        warmup: Steps of the generator alone.
    """

    name = "conditional-generator"
    data = "synthetic"
    recipe = "gdfq"

    warmup: int = 60

    def make(self, work: Work) -> Tensor:
        """(n, C, H, W), between black and white."""
        game = self.game(work)
        if work.request.synthetic is not None:
            return work.request.synthetic
        with frozen(game.model):
            return game.sample(work.count)

    def game(self, work: Work) -> Game:
        """The generator, warmed up once.

        Raises:
            ValueError: If the model is no classifier, or has no BatchNorm.
        """
        if GAME in work.facts:
            stored: Game = work.facts[GAME]
            return stored
        request = work.request
        classes = classes_of(work)
        if classes is None:
            raise ValueError(
                "gdfq is for classifiers: its generator makes images for labels, and "
                f"{type(work.model).__name__} does not answer with logits (n, classes). Use 'zaq'."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(request.seed * 1009 + 5)
            generator = ConditionalGenerator(request.image_format, classes)
        game = Game(
            generator.to(work.device).train(),
            work.model,
            classes,
            work.rng(5),
            request.batch_size,
        )
        if not len(game.bn_loss):
            raise ValueError(
                f"{type(work.model).__name__} has no BatchNorm, whose statistics gdfq's generator "
                "learns from; use 'zaq', which does with dead leaves"
            )
        with frozen(work.model):
            for _ in range(request.steps(self.warmup)):
                game.step()
        work.facts[GAME] = game
        return game


@dataclass(frozen=True)
class GenerativeTraining(Stage):
    """Generator and student in turn, one step each; the best judged state is kept.

    Attributes:
        training: Steps.
        label_weight: Weight of the student's cross-entropy beside the teacher's divergence.
        judged: Images that judge and are never trained on.
    """

    slot = "after"
    name = "gdfq"

    training: int = 200
    label_weight: float = 0.1
    judged: int = 128

    def finish(self, work: Work) -> None:
        """Train the student in place."""
        refuse_compound(work, self.name)
        if not isinstance(work.source, Conditional):
            raise ValueError(
                "gdfq trains on its own generator's images, and the composition takes others; name "
                "'gdfq' first, as in 'gdfq+equalise'"
            )
        game = work.source.game(work)
        student, teacher = work.student, work.teacher
        work.trained = self.name
        config = ZeroShotConfig(
            seed=work.request.seed, steps=work.request.steps(self.training), edge_lr=0.0
        )
        set_switches(student, observe=False, quantize=True)
        to_evaluation(student)
        with frozen(game.model):
            judge = Judge(teacher, game.sample(self.judged), work.request.adapter)
            judge.look(student, "start")
            learner = Learner(student, judge.images[:2], config)
            for step in range(1, config.steps + 1):
                images, labels = game.step()
                learner.update(self.loss(teacher, student, images, labels))
                if step == config.steps or step % config.judging.every == 0:
                    with learner.judged():
                        judge.look(student, f"step {step}")
            learner.detach()
        best = judge.restore_best(student)
        work.notes.append(
            f"best state by the judge: {best.label}, agreement {judge.history[0].agreement:.3f} to "
            f"{best.agreement:.3f} on generated images"
        )

    def loss(
        self, teacher: nn.Module, student: nn.Module, images: Tensor, labels: Tensor
    ) -> Tensor:
        """``KL(P(x) || Q(x)) + w CE(Q(x), y)``, the student's."""
        with torch.no_grad():
            expected = teacher(images.clone())
        answer = student(images.clone())
        loss = teacher_divergence(expected, answer)
        return loss + self.label_weight * F.cross_entropy(answer, labels)


GDFQ = Strategy(
    name="gdfq",
    title="conditional generator, student by teacher and labels",
    paper="Xu et al., ECCV 2020",
    data="synthetic",
    trains=True,
    stages=(Conditional(), LeastSquaresWeights(), MinMaxActivations(), GenerativeTraining()),
)
