"""FSDP2 on two processes: a model that is spread over them learns as a whole one, and goes on from its checkpoint."""

import torch
import torch.multiprocessing
from test_modeling_m3dec import TINY_BERT, tiny_model, training_batch
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from m3dec import M3DecForImageSegmentation

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
STEPS = 4
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TEXTS = {"lstm": None, "bert": TINY_BERT | NO_DROPOUT}


def new_training(text: str, shard: bool) -> tuple[M3DecForImageSegmentation, torch.optim.Optimizer]:
    """A model in float64 with batch norms that keep their statistics: each process would have its own."""
    model = tiny_model(text_config=TEXTS[text], dropout=0.0).double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    if shard:
        for module in model.modules():
            if type(module).__name__ in model._no_split_modules:
                fully_shard(module)
        fully_shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def loss_of(model: M3DecForImageSegmentation, part: int) -> torch.Tensor:
    """Of one half of the data; both halves have as many words."""
    batch = training_batch(seed=part)
    doubles = {name: batch[name].double() for name in ("pixel_values", "labels")}
    return model(**batch | doubles).loss


def learn(text: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of a whole model on both halves, and its last weights."""
    model, optimizer = new_training(text, shard=False)
    losses = []
    for _ in range(STEPS):
        loss = (loss_of(model, 0) + loss_of(model, 1)) / 2
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model.state_dict()


def learn_on_two(rank: int, folder: str) -> None:
    """The same with a half of the data and of the weights on each process; after two steps all is made anew."""
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for text in TEXTS:
        model, optimizer = new_training(text, shard=True)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        losses = []
        for step in range(STEPS):
            if step == STEPS // 2:
                states = list(get_state_dict(model, optimizer, options=WHOLE))
                distributed.broadcast_object_list(states)  # only the first process has the whole
                model, optimizer = new_training(text, shard=True)
                names = ("model_state_dict", "optim_state_dict")
                set_state_dict(model, optimizer, **dict(zip(names, states, strict=True)), options=WHOLE)
            loss = loss_of(model, rank)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss = loss.detach()
            distributed.all_reduce(loss)
            losses.append(loss.item() / 2)
        state, _ = get_state_dict(model, optimizer, options=WHOLE)
        if rank == 0:
            model.save_pretrained(f"{folder}/{text}", state_dict=state)
            torch.save(losses, f"{folder}/{text}.pt")
    distributed.destroy_process_group()


def test_a_model_spread_over_two_processes_learns_as_a_whole_one(tmp_path):
    torch.multiprocessing.spawn(learn_on_two, (str(tmp_path),), nprocs=2)
    for text in TEXTS:
        losses, weights = learn(text)
        torch.testing.assert_close(torch.load(tmp_path / f"{text}.pt"), losses, rtol=0, atol=1e-10)
        saved = M3DecForImageSegmentation.from_pretrained(tmp_path / text, dtype=torch.float64).state_dict()
        assert saved.keys() == weights.keys()
        assert max((saved[name] - weight).abs().max() for name, weight in weights.items()) <= 1e-9
