import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mutants import (
    NOTICEABLE,
    TOLERANCE,
    distance,
    draw,
    drawn,
    edited,
    first_words,
    real_rows,
    under,
    weights_of,
)
from test_language_reconstruction import IN_FLOAT64
from test_language_reconstruction import by_hand as language_reconstruction_by_hand
from transformers import ResNetConfig

from m3dec import M3DecConfig, M3DecForImageSegmentation, language_reconstruction, modeling_m3dec, positions
from m3dec.mask_loss import IGNORED, dice_loss, mask_loss, masks_at

N, T, C, SIDE = 3, 5, 2 * 10, 2
NUM_WORDS = [5, 2, 3]
MASK = first_words(NUM_WORDS, T)
W_MASK, W_REC, W_DICE = 0.7, 0.3, 0.2


def masks_at_by_hand(labels, height, width):
    """1 where at least half of a cell's pixels are object. A cell holds every pixel that it touches, but for ignored
    ones; a cell that holds none is ignored."""
    masks = np.zeros((len(labels), height, width))
    for n, label in enumerate(labels):
        for y in range(height):
            for x in range(width):
                top, bottom = y * label.shape[0] // height, -(-(y + 1) * label.shape[0] // height)
                left, right = x * label.shape[1] // width, -(-(x + 1) * label.shape[1] // width)
                cell = label[top:bottom, left:right]
                cell = cell[cell != IGNORED]
                masks[n, y, x] = 2 * np.count_nonzero(cell) >= cell.size if cell.size else IGNORED
    return masks


def mask_loss_by_hand(logits, masks):
    """The binary cross entropy, a mean over all pixels of all expressions that are not ignored."""
    total = count = 0
    for logit, target in zip(logits.ravel(), masks.ravel(), strict=True):
        if target != IGNORED:
            probability = 1 / (1 + np.exp(-logit))
            total -= target * np.log(probability) + (1 - target) * np.log(1 - probability)
            count += 1
    return total / count


def dice_by_hand(logits, masks):
    """1 - (2 |A n B| + 1) / (|A| + |B| + 1), with probabilities for A, a mean over expressions; where B is empty, the
    sum of p * -log(1 - p) over the sum of p and 1. Ignored pixels, and expressions of nothing else, are left out."""
    total = count = 0
    for whole_logit, whole_target in zip(logits, masks, strict=True):
        logit, target = whole_logit[whole_target != IGNORED], whole_target[whole_target != IGNORED]
        if not target.size:
            continue
        count += 1
        probability = 1 / (1 + np.exp(-logit))
        if not target.any():
            total += sum(-p * np.log(1 - p) for p in probability.ravel()) / (probability.sum() + 1)
            continue
        both = sum(p * t for p, t in zip(probability.ravel(), target.ravel(), strict=True))
        total += 1 - (2 * both + 1) / (probability.sum() + target.sum() + 1)
    return total / count


def labels_of(height, width, seed=7):
    """Masks with object on the left, a border that wavers, and some cells exactly half covered."""
    pixels = draw(N, height, width, seed=seed) + torch.linspace(2, -2, width)
    return (pixels > 0).double()


def with_ignored(labels, seed=9):
    """The labels with ignored ones strewn over them, a corner of the first that is all ignored, and no other last."""
    labels = labels.masked_fill(draw(*labels.shape, seed=seed) > 0.5, IGNORED)
    labels[0, : labels.shape[1] // 2, : labels.shape[2] // 2] = IGNORED
    labels[-1] = IGNORED
    return labels


def segmenter(**settings):
    config = M3DecConfig(
        backbone_config=ResNetConfig(
            embedding_size=4,
            hidden_sizes=[4, 4, 4, 4],
            depths=[1, 1, 1, 1],
            out_features=["stage2", "stage3", "stage4"],
        ),
        image_size=16 * SIDE,
        hidden_size=C,
        num_attention_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=2,
        encoder_ffn_dim=7,
        decoder_ffn_dim=13,
        dropout=0,
        max_words=T,
        vocab_size=17,
        word_vector_size=3,
        mask_decoder_channels=3,
        mask_loss_weight=W_MASK,
        reconstruction_loss_weight=W_REC,
        **settings,
    )
    return drawn(M3DecForImageSegmentation(config))


def difference(monkeypatch, training=True, labels=None, dice_weight=0.0):
    """How far the loss and its parts are from Eq. 5, given the logits and features that the model itself reports.

    Its casts to float32 are casts to float64 here.
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    in_float64 = edited(positions, *IN_FLOAT64)
    monkeypatch.setattr(language_reconstruction, "sine_positions", in_float64.sine_positions)
    model = segmenter(dice_loss_weight=dice_weight).train(training)
    weights = weights_of(model)
    labels = labels_of(32, 32) if labels is None else labels
    outputs = model(
        image_features=draw(N, SIDE**2, C),
        input_ids=torch.arange(N * T).view(N, T),
        attention_mask=MASK.long(),
        labels=labels,
    )
    logits = outputs.logits.detach().numpy()
    assert np.ptp(logits) > 0.1
    masks = masks_at_by_hand(labels.numpy(), *logits.shape[1:])
    cross_entropy = mask_loss_by_hand(logits, masks)
    expected = W_MASK * cross_entropy + dice_weight * dice_by_hand(logits, masks)
    if not training:
        return distance([outputs.loss.detach(), outputs.mask_loss.detach()], [expected, cross_entropy])
    words, decoded = (real_rows(x, MASK) for x in (outputs.word_features, outputs.last_hidden_state))
    sentence = outputs.sentence_features.detach().numpy()
    lfr = under(weights, "language_reconstruction")
    reconstruction_loss = language_reconstruction_by_hand(words, sentence, decoded, lfr, training)[2]
    expected += W_REC * reconstruction_loss
    ours = [outputs.loss, outputs.mask_loss, outputs.reconstruction_loss]
    return distance([loss.detach() for loss in ours], [expected, cross_entropy, reconstruction_loss])


@pytest.mark.parametrize("dice_weight", [0.0, W_DICE], ids=["the paper's", "with dice"])
@pytest.mark.parametrize("size", [(16, 16), (32, 32), (48, 80), (29, 31), (7, 11)])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_the_loss_is_equation_5_and_in_eval_its_first_half(training, size, dice_weight, monkeypatch):
    assert difference(monkeypatch, training, labels_of(*size), dice_weight) < TOLERANCE


@pytest.mark.parametrize("dice_weight", [0.0, W_DICE], ids=["the paper's", "with dice"])
@pytest.mark.parametrize("size", [(16, 16), (48, 80), (29, 31), (7, 11)])
def test_ignored_labels_are_left_out_of_the_loss_and_of_the_labels_at_the_logits_size(size, dice_weight, monkeypatch):
    labels = with_ignored(labels_of(*size))
    assert difference(monkeypatch, False, labels, dice_weight) < TOLERANCE
    assert difference(monkeypatch, True, labels.long(), dice_weight) < TOLERANCE


def slope(function, values, place, step=1e-5):
    """How fast `function` of an array grows with one entry of it."""
    below, above = values.copy(), values.copy()
    below[place] -= step
    above[place] += step
    return (function(above) - function(below)) / (2 * step)


def test_the_gradient_is_0_at_ignored_labels_and_elsewhere_that_of_the_loss_over_the_others():
    target = with_ignored(labels_of(5, 7))
    target[1, target[1] == 1] = 0  # nothing is meant by this expression
    logits = draw(N, 5, 7).requires_grad_()
    values, masks = logits.detach().numpy(), target.numpy()
    counted = masks != IGNORED
    gradients = [torch.autograd.grad(loss(logits, target), logits)[0].numpy() for loss in (mask_loss, dice_loss)]
    for gradient in gradients:
        assert (gradient[~counted] == 0).all() and (gradient[counted] != 0).all()
    probabilities = 1 / (1 + np.exp(-values))
    expected = (probabilities - masks) / counted.sum()
    assert distance([gradients[0][counted]], [expected[counted]]) < TOLERANCE
    for place in zip(*counted[:1].nonzero(), strict=True):
        assert abs(gradients[1][place] - slope(lambda x: dice_by_hand(x, masks), values, place)) < 1e-9
    # Where nothing is meant, the weights have no gradient; a half, for the last of three expressions is left out.
    probabilities = probabilities[1][counted[1]]
    expected = probabilities**2 / (probabilities.sum() + 1) / 2
    assert distance([gradients[1][1][counted[1]]], [expected]) < TOLERANCE


@pytest.mark.parametrize("loss", [mask_loss, dice_loss])
def test_where_all_labels_are_ignored_the_loss_is_0_and_so_is_its_gradient(loss):
    logits = draw(N, 5, 7).requires_grad_()
    value = loss(logits, torch.full((N, 5, 7), float(IGNORED)))
    value.backward()
    assert value == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(16, 16), (48, 80), (29, 31), (7, 11)])
def test_where_nothing_is_ignored_labels_and_losses_are_to_the_bit_as_without_the_choice(size, dtype):
    labels, logits = labels_of(*size), draw(N, 16, 16).to(dtype).requires_grad_()
    covered = F.interpolate(labels[:, None].float(), size=(16, 16), mode="area").squeeze(1)
    target = masks_at(labels, logits)
    assert torch.equal(target, (covered >= 0.5).to(dtype))
    loss, plain = mask_loss(logits, target), F.binary_cross_entropy_with_logits(logits, target)
    assert torch.equal(loss, plain) and loss.dtype == dtype
    assert torch.equal(*(torch.autograd.grad(each, logits)[0] for each in (loss, plain)))
    plain_dice = edited(
        dice_loss,
        (", target = logits.sigmoid() * counted, target * counted", " = logits.sigmoid()"),
        ("_over_counted(torch", "(torch"),
        (", counted.any(dim=(1, 2)))", ")"),
    )
    loss, plain = dice_loss(logits, target), plain_dice(logits, target)
    assert torch.equal(loss, plain) and loss.dtype == dtype
    assert torch.equal(*(torch.autograd.grad(each, logits)[0] for each in (loss, plain)))


RECONSTRUCTION = "loss = loss + self.config.reconstruction_loss_weight * reconstruction_loss"
DICE = "loss = loss + self.config.dice_loss_weight * dice_loss("


@pytest.mark.parametrize(
    ("training", "old", "new"),
    [
        pytest.param(True, "self.config.mask_loss_weight * cross_entropy", "cross_entropy", id="without w_mask"),
        pytest.param(True, RECONSTRUCTION, "loss = loss + reconstruction_loss", id="without w_rec"),
        pytest.param(True, RECONSTRUCTION, "pass", id="without L_rec"),
        pytest.param(True, RECONSTRUCTION, RECONSTRUCTION.replace("loss + ", "loss - ", 1), id="L_rec subtracted"),
        pytest.param(
            True,
            "outputs.sentence_features, decoded, word_mask",
            "outputs.sentence_features, outputs.word_features, word_mask",
            id="F_t for F_dec",
        ),
        pytest.param(
            True,
            "outputs.sentence_features, decoded, word_mask",
            "outputs.sentence_features, decoded, word_mask | True",
            id="L_rec without mask",
        ),
        pytest.param(
            True,
            "outputs.word_features, outputs.sentence_features",
            "decoded, outputs.sentence_features",
            id="F_dec for F_t",
        ),
        pytest.param(False, "if self.training and self.language", "if self.language", id="L_rec in eval"),
        pytest.param(True, DICE, DICE.replace("self.config.dice_loss_weight * ", ""), id="without w_dice"),
        pytest.param(False, DICE, "(", id="without dice"),
        pytest.param(
            False, "target = masks_at(labels, precise)", "target = 1 - masks_at(labels, precise)", id="inverted"
        ),
        pytest.param(
            False, "target = masks_at(labels, precise)", "target = masks_at(labels.mT, precise)", id="rows for columns"
        ),
        pytest.param(False, "mask_loss(precise, target)", "mask_loss(-precise, target)", id="sign"),
        pytest.param(False, "mask_loss(precise, target)", "mask_loss(precise.sigmoid(), target)", id="two sigmoids"),
    ],
)
def test_the_oracle_notices_a_mistake_in_equation_5(training, old, new, monkeypatch):
    mutant = edited(M3DecForImageSegmentation.forward, (old, new))
    monkeypatch.setattr(M3DecForImageSegmentation, "forward", mutant)
    assert difference(monkeypatch, training, dice_weight=W_DICE) > NOTICEABLE


NOTHING = torch.zeros(N, 5, 7, dtype=torch.float64)


def test_where_nothing_is_meant_dice_is_the_mean_cross_entropy_of_what_is_marked():
    logits = 3 * draw(N, 5, 7).double()
    by_hand = dice_by_hand(logits.numpy(), NOTHING.numpy())
    assert abs(dice_loss(logits, NOTHING).item() - by_hand) < TOLERANCE
    for old, new in (("weight * F.softplus", "F.softplus"), ("(1, 2)) + 1)\n    return", "(1, 2)))\n    return")):
        assert abs(edited(dice_loss, (old, new))(logits, NOTHING).item() - by_hand) > NOTICEABLE


def test_a_large_area_that_is_marked_where_nothing_is_meant_is_pressed_down_as_a_target_is_pulled_up():
    logits = torch.full((1, 40, 40), 2.0, dtype=torch.float64, requires_grad=True)
    target = torch.zeros(1, 40, 40, dtype=torch.float64)
    dice_loss(logits, target).backward()
    assert logits.grad.sum() > 0.5  # Dice itself would give 1e-4


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        pytest.param("masks_at", "covered >= 0.5", "covered > 0.5", id="more than half"),
        pytest.param("masks_at", "covered >= 0.5", "covered > 0", id="any"),
        pytest.param("masks_at", "(covered >= 0.5 * counted).to(logits.dtype)", "covered", id="soft labels"),
        pytest.param("masks_at", '"area"', '"nearest"', id="nearest"),
        pytest.param("masks_at", '"area"', '"bilinear"', id="bilinear"),
        pytest.param("masks_at", "0.5 * counted", "0.5", id="half of all of a cell"),
        pytest.param("masks_at", "labels != IGNORED", "labels == labels", id="ignored labels are background"),
        pytest.param("mask_loss", ", weight=counted.to(logits.dtype)", ", reduction='sum'", id="a sum, not a mean"),
        pytest.param("mask_loss", "_over_counted(loss, counted)", "loss", id="a mean over ignored pixels too"),
        pytest.param("dice_loss", "logits.sigmoid() * counted", "logits.sigmoid()", id="dice of ignored pixels"),
        pytest.param("dice_loss", "counted.any(dim=(1, 2))", "counted", id="dice over pixels"),
        pytest.param("dice_loss", "(2 * (probability", "((probability", id="dice without its 2"),
        pytest.param(
            "dice_loss", ".sum(dim=(1, 2)) + 1) / (marked", ".sum(dim=(1, 2))) / (marked", id="dice without 1 above"
        ),
        pytest.param("dice_loss", "(marked + area + 1)", "(marked + area)", id="dice without 1 below"),
        pytest.param("dice_loss", "logits.sigmoid()", "logits", id="dice without sigmoid"),
        pytest.param("dice_loss", ".mean()", ".sum()", id="dice summed over expressions"),
        pytest.param("dice_loss", "dice = 1 - (", "dice = (", id="dice rewarded"),
        pytest.param(
            "dice_loss",
            "(marked + area + 1)",
            "(marked.sum() + area.sum() + 1)",
            id="dice over the batch",
        ),
    ],
)
def test_the_oracle_notices_a_mistake_in_the_labels_and_in_dice(name, old, new, monkeypatch):
    monkeypatch.setattr(modeling_m3dec, name, edited(getattr(modeling_m3dec, name), (old, new)))
    labels = with_ignored(labels_of(64, 32))
    assert difference(monkeypatch, training=False, labels=labels, dice_weight=W_DICE) > NOTICEABLE


@pytest.mark.parametrize(("height", "width"), [(3, 5), (13, 2), (11, 17)])
@pytest.mark.parametrize("size", [(11, 17), (13, 29), (33, 34), (101, 7), (2, 3)])
def test_labels_of_any_size_are_object_where_half_of_the_cell_is(size, height, width):
    labels = labels_of(*size)
    ours = masks_at(labels, torch.zeros(N, height, width))
    assert ours.dtype == torch.float32
    assert np.array_equal(ours, masks_at_by_hand(labels.numpy(), height, width))


def test_a_cell_exactly_half_covered_is_object_in_every_cell_size():
    for rows in range(1, 13):
        for columns in range(1, 13):
            half, odd = divmod(rows * columns, 2)
            label = (torch.arange(rows * columns).view(1, rows, columns) < half).double()
            assert masks_at(label, torch.zeros(1, 1, 1)).item() == (0.0 if odd else 1.0), (rows, columns)


def test_in_float32_the_losses_are_the_oracle_s_to_float32():
    logits, masks = draw(N, 5, 7), labels_of(5, 7)
    assert distance([dice_loss(logits.float(), masks.float())], [dice_by_hand(logits.numpy(), masks.numpy())]) < 1e-6
    model = segmenter().float().eval()
    outputs = model(
        image_features=draw(N, SIDE**2, C).float(), input_ids=torch.arange(N * T).view(N, T), labels=labels_of(32, 32)
    )
    masks = masks_at_by_hand(labels_of(32, 32).numpy(), 16, 16)
    expected = mask_loss_by_hand(outputs.logits.detach().double().numpy(), masks)
    assert outputs.reconstruction_loss is None
    assert distance([outputs.mask_loss.detach(), outputs.loss.detach()], [expected, W_MASK * expected]) < 1e-6
