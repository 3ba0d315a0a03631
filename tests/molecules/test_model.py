"""The networks against slow, plain versions of themselves."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.errors import DataError
from unbackdoor.molecules.data import checked, parse, template_table
from unbackdoor.molecules.model import (
    Denoiser,
    Diffusion,
    GraphEncoder,
    Graphs,
    MoleculeVAE,
    MotifDecoder,
    TextEncoder,
    WordPieces,
    contrastive_loss,
)
from unbackdoor.molecules.model.vae import divergence
from unbackdoor.molecules.model.wordpiece import SPECIAL
from unbackdoor.molecules.motifs import STOP, Cutter, build_vocabulary, encode, join, sequence_of

SMILES = [
    str(checked(one))
    for one in (
        "CCO",
        "C",
        "c1ccccc1C(=O)O",
        "CC(C(Br)F)N",
        "O=c1cc[nH]cc1",
        "CC(=O)[O-]",
        "CS(=O)(=O)Nc1ccc(C#N)cc1",
        "C1CS1",
    )
]
NODES = [sequence_of(Cutter().cut(smiles)) for smiles in SMILES]
VOCABULARY = build_vocabulary(NODES)
TOKENS = encode(NODES, VOCABULARY)
ALL = torch.arange(len(SMILES))


def seeded(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1]))
    return module.eval()


def encoded_by_hand(encoder: GraphEncoder, smiles: str) -> Tensor:
    """One molecule, atom by atom and bond by bond."""
    molecule = parse(smiles)
    assert molecule is not None
    kinds = {1.0: 1, 2.0: 2, 3.0: 3, 1.5: 4}
    atoms = [
        encoder.element.weight[atom.GetAtomicNum()] + encoder.charge.weight[atom.GetFormalCharge() + 3]
        for atom in molecule.GetAtoms()
    ]
    for layer in encoder.layers:
        new = []
        for atom in molecule.GetAtoms():
            message = atoms[atom.GetIdx()] + layer.bond.weight[:, 0]
            for bond in atom.GetBonds():
                message = message + atoms[bond.GetOtherAtomIdx(atom.GetIdx())]
                message = message + layer.bond.weight[:, kinds[bond.GetBondTypeAsDouble()]]
            one = layer.norm(layer.perceptron(message)[None])[0]
            new.append(one if layer.last else one.relu())
        atoms = new
    return torch.stack([encoder.project(encoder.norm(atom)) for atom in atoms]).mean(0)


def test_the_graph_encoder_is_that_of_a_loop_over_atoms_and_bonds() -> None:
    encoder = seeded(GraphEncoder(3, 16, 8))
    vectors = encoder(Graphs.of(SMILES).rows(ALL))
    expected = torch.stack([encoded_by_hand(encoder, smiles) for smiles in SMILES])
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-5)


def test_molecules_of_a_batch_do_not_touch_each_other() -> None:
    encoder, graphs = seeded(GraphEncoder(2, 16, 8)), Graphs.of(SMILES)
    whole = encoder(graphs.rows(ALL))
    order = torch.tensor([5, 0, 3])
    torch.testing.assert_close(encoder(graphs.rows(order)), whole[order], rtol=1e-4, atol=1e-5)


def test_an_acid_and_its_anion_are_told_apart() -> None:
    vectors = seeded(GraphEncoder(2, 16, 8))(Graphs.of(["CC(=O)O", "CC(=O)[O-]"]).rows(torch.tensor([0, 1])))
    assert (vectors[0] - vectors[1]).abs().max() > 0.01


def test_molecules_that_are_too_large_are_refused() -> None:
    with pytest.raises(DataError, match="row 1"):
        Graphs.of(["C", "C" * 30])


def test_the_contrastive_loss_is_that_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    graphs, texts = torch.randn(2, 5, 7, generator=generator)
    expected = 0.0
    for one, other in ((graphs, texts), (texts, graphs)):
        for row in range(5):
            alike = [float(F.cosine_similarity(one[row], other[column], dim=0)) / 0.1 for column in range(5)]
            expected += math.log(sum(math.exp(value) for value in alike)) - alike[row]
    assert float(contrastive_loss(graphs, texts, 0.1)) == pytest.approx(expected / 10, rel=1e-5)


def test_padding_does_not_change_the_vector_of_a_text() -> None:
    words = WordPieces.learned(["an acid and its anion", "a base"], 100)
    encoder = seeded(TextEncoder(len(words), 2, 32, 16, 8))
    texts = words.encode(["a base", "an acid and its anion"], 16)
    alone = encoder(texts.rows(torch.tensor([0])))
    together = encoder(texts.rows(torch.tensor([0, 1])))
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


def encoded_text_by_hand(encoder: TextEncoder, pieces: Tensor) -> Tensor:
    """One text without padding, head by head, all words in every layer."""
    words = encoder.piece.weight[pieces] + encoder.place[: len(pieces)]
    for layer in encoder.layers:
        known = layer.before(words)
        query, (key, value) = layer.query(known), layer.key_value(known).chunk(2, dim=-1)
        heads = []
        for head in range(layer.heads):
            part = slice(head * 32, head * 32 + 32)
            weights = (query[:, part] @ key[:, part].T / math.sqrt(32)).softmax(1)
            heads.append(weights @ value[:, part])
        words = words + layer.out(torch.cat(heads, 1))
        words = words + layer.perceptron(words)
    own = sum(encoder.word.weight[piece] for piece in pieces) / math.sqrt(len(pieces))
    return encoder.project(encoder.norm(words[0])) + encoder.project_words(own)


def test_the_text_encoder_is_that_of_a_loop_over_texts_and_heads() -> None:
    encoder = seeded(TextEncoder(50, 3, 64, 12, 8))
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 12, 7, 2, 12, 5, 9]
    pieces = torch.zeros(7, 12, dtype=torch.int64)
    for row, length in enumerate(lengths):
        pieces[row, :length] = torch.randint(1, 50, (length,), generator=generator)
    expected = torch.stack([encoded_text_by_hand(encoder, pieces[row, :length]) for row, length in enumerate(lengths)])
    torch.testing.assert_close(encoder(pieces), expected, rtol=1e-3, atol=1e-4)


def test_word_pieces_read_any_text_and_tell_what_is_cut() -> None:
    words = WordPieces.learned(["the molecule is a thiol", "[THIIRANE] the molecule"] * 5, 200)
    texts = words.encode(["", "the MOLECULE", "ж漢\ud800\x00", "thiol " * 10_000], 8)
    assert texts.cut == (False, False, False, True)
    assert texts.length.tolist()[0] == 2
    begin, end = words.pieces.index("[CLS]"), words.pieces.index("[SEP]")
    assert all(row[0] == begin and row[length - 1] == end for row, length in zip(texts.pieces, texts.length.tolist()))
    assert "▁thiirane" in words.pieces
    again = WordPieces(words.pieces).encode(["the MOLECULE"], 8)
    assert torch.equal(again.pieces[0], texts.pieces[1])


def test_what_a_tokenizer_knows_of_a_text_is_told() -> None:
    words = WordPieces.learned(["the molecule is a thiol", "the molecule is an acid"] * 5, 200)
    texts = words.encode(["the molecule is a thiol", "分子 the", "molthiol the", "", "the the 分子分子"], 16)
    # Each Chinese sign is a word by itself.
    assert texts.unknown == (0, pytest.approx(2 / 3), 0, 0, pytest.approx(4 / 6))
    assert texts.familiar == (1, pytest.approx(1 / 3), 0.5, 1, pytest.approx(2 / 6))
    assert texts.to(torch.device("cpu")).unknown == texts.unknown


def test_the_same_texts_give_the_same_pieces_in_any_process() -> None:
    """Trainers of tokenizers break ties by chance, and another order of pieces is another model."""
    code = (
        "from unbackdoor.molecules.data import template_table as t; from unbackdoor.molecules.model import WordPieces;"
        " print(WordPieces.learned(t().texts, 300).pieces)"
    )
    told = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert told == {f"{WordPieces.learned(template_table().texts, 300).pieces}\n".encode()}


@pytest.mark.parametrize(
    "pieces",
    [
        *([], ["[PAD]", "[UNK]", "[CLS]"], ["a", "[PAD]", "[UNK]", "[CLS]", "[SEP]"], ["[PAD]"] * 9),
        [*SPECIAL, "\ud800"],
    ],
)
def test_a_strangers_pieces_are_checked(pieces: list[str]) -> None:
    with pytest.raises(DataError, match="word pieces"):
        WordPieces(pieces)


def decoder() -> MotifDecoder:
    made = seeded(MotifDecoder(VOCABULARY, 4, 16))
    assert isinstance(made, MotifDecoder)
    return made


def loss_by_hand(decoder: MotifDecoder, latent: Tensor, row: int) -> Tensor:
    """One molecule, one decision after the other."""
    hidden = torch.tanh(decoder.start(latent))[None]
    always, step, total = decoder.always(latent), decoder.begin, torch.zeros(())
    kinds: list[int] = []
    path: list[int] = []
    for column, node in enumerate([*NODES[row], None]):
        output, hidden = decoder.gru((step + always)[None], hidden)
        state = output[0]
        kind = STOP if node is None else VOCABULARY.token_of[node.motif, node.order]
        logits = decoder.kind_head(torch.cat((state, latent)))
        able = [
            (VOCABULARY.kinds[token - 1][1] == 0) == (column == 0) if token != STOP else column > 0
            for token in range(len(VOCABULARY))
        ]
        total = total - choose(logits, able, kind)
        if node is None:
            return total
        parent_kind = kind
        if column:
            own = decoder.kind.weight[kind]
            total = total - decoder.up_head(torch.cat((state, own, latent))).log_softmax(0)[node.up]
            path = path[: len(path) - node.up]
            parent_kind = kinds[path[-1]]
            given = torch.cat((state, own, decoder.kind.weight[parent_kind]))
            for head, of, atom in (
                (decoder.parent_atom_head, parent_kind, node.parent_atom),
                (decoder.own_atom_head, kind, node.own_atom),
            ):
                free = VOCABULARY.motifs[of - 1].free
                able = [place < len(free) and free[place] >= node.order for place in range(29)]
                total = total - choose(head(given), able, atom)
        kinds.append(kind)
        path.append(column)
        step = (
            decoder.kind.weight[kind]
            + decoder.up.weight[node.up]
            + decoder.parent_atom.weight[node.parent_atom]
            + decoder.own_atom.weight[node.own_atom]
            + decoder.parent_kind(decoder.kind.weight[parent_kind])
        )
    raise AssertionError


def choose(logits: Tensor, able: list[bool], chosen: int) -> Tensor:
    """Return the logarithm of the probability of what was chosen among what can be."""
    assert able[chosen]
    return logits[torch.tensor(able)].log_softmax(0)[sum(able[:chosen])]


def test_the_decoders_loss_is_that_of_one_decision_after_the_other() -> None:
    latent = torch.randn(len(SMILES), 4, generator=torch.Generator().manual_seed(1))
    losses = decoder().loss(latent, TOKENS.rows(ALL))
    expected = torch.stack([loss_by_hand(decoder(), latent[row], row) for row in range(len(SMILES))])
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)


def test_single_atoms_alone_have_a_loss() -> None:
    losses = decoder().loss(torch.zeros(1, 4), TOKENS.rows(torch.tensor([1])))
    assert losses.shape == (1,)
    losses.sum().backward()


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_an_untrained_decoder_writes_valid_molecules_that_are_not_too_large(scale: float) -> None:
    latent = scale * torch.randn(200, 4, generator=torch.Generator().manual_seed(2))
    tokens = decoder().generate(latent)
    smiles = [join(tokens.nodes(row, VOCABULARY)) for row in range(200)]
    assert all(checked(one) == one for one in smiles)
    assert len(set(smiles)) > 20
    assert max(int(length) for length in tokens.length) > 5


def test_generating_takes_the_most_likely_root_and_does_not_depend_on_company() -> None:
    latent = torch.randn(20, 4, generator=torch.Generator().manual_seed(3))
    one = decoder()
    tokens = one.generate(latent)
    roots = [token for token in range(1, len(VOCABULARY)) if VOCABULARY.kinds[token - 1][1] == 0]
    for row in range(20):
        alone = one.generate(latent[row : row + 1])
        length = int(tokens.length[row])
        assert torch.equal(alone.kind[0, : length + 1], tokens.kind[row, : length + 1])
        likelihoods = root_likelihoods(one, latent[row])
        assert int(tokens.kind[row, 0]) == max(roots, key=lambda root: float(likelihoods[root]))


def root_likelihoods(decoder: MotifDecoder, latent: Tensor) -> Tensor:
    output, _ = decoder.gru((decoder.begin + decoder.always(latent))[None], torch.tanh(decoder.start(latent))[None])
    return decoder.kind_head(torch.cat((output[0], latent))).detach()


def test_an_autoencoder_learns_a_few_molecules_by_heart() -> None:
    torch.manual_seed(0)
    vae = MoleculeVAE(GraphEncoder(3, 32, 16), MotifDecoder(VOCABULARY, 8, 64), 16, 8, 32)
    graphs, tokens = Graphs.of(SMILES), TOKENS.rows(ALL)
    optimizer = torch.optim.Adam(vae.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(250):
        optimizer.zero_grad()
        noise = torch.randn(len(SMILES), 8, generator=generator)
        vae.loss(graphs.rows(ALL), tokens, noise, 0.01).backward()
        optimizer.step()
    vae.train()
    mean, deviation = vae.encode(graphs.rows(ALL))
    assert bool((deviation <= 1).all())
    written = vae.decoder.generate(mean)
    assert [join(written.nodes(row, VOCABULARY)) for row in range(len(SMILES))] == SMILES


def test_the_divergence_is_that_of_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, deviation = torch.randn(4, 6, generator=generator), torch.rand(4, 6, generator=generator) + 0.1
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, deviation), normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence(mean, deviation), expected)


class Perfect(Denoiser):
    """The best estimate there is where clean vectors are normal with a mean of 3 times the text, and deviation 0.5."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__(2, 2, 4, 1)
        self.kept = kept

    def forward(self, noisy: Tensor, time: Tensor, context: Tensor, without: Tensor) -> Tensor:
        kept = self.kept[time][:, None]
        mean = torch.where(without[:, None], torch.zeros_like(context), 3 * context)
        return mean + 0.25 * kept.sqrt() / (0.25 * kept + 1 - kept) * (noisy - kept.sqrt() * mean)


def deviation_by_ancestors(kept: list[float], steps: int) -> float:
    """Return the spread of what ancestral sampling with the best estimate gives.

    A vector at an earlier time, given the one at a later time and the estimate of the clean one, is normal around
    a * estimate + b * later.
    """
    times = list(range(len(kept) - 1, -1, -len(kept) // steps))
    variance = 1.0
    for time, after in itertools.pairwise(times):
        now, then = kept[time], kept[after]
        gain = 0.25 * math.sqrt(now) / (0.25 * now + 1 - now)
        a = math.sqrt(then) * (1 - now / then) / (1 - now)
        b = math.sqrt(now / then) * (1 - then) / (1 - now)
        variance = (a * gain + b) ** 2 * variance + (1 - then) / (1 - now) * (1 - now / then)
    last = kept[times[-1]]
    return math.sqrt(variance) * 0.25 * math.sqrt(last) / (0.25 * last + 1 - last)


def test_the_schedule_is_the_published_one() -> None:
    kept = Diffusion(Denoiser(2, 2, 4, 1), 2, 100).kept
    betas = [0.001 + (0.2 - 0.001) * step / 99 for step in range(100)]
    expected = list(itertools.accumulate((1 - beta for beta in betas), lambda left, right: left * right))
    assert kept.tolist() == pytest.approx(expected, rel=1e-4)


def test_a_perfect_denoiser_samples_the_distribution() -> None:
    diffusion = Diffusion(Denoiser(2, 2, 4, 1), 2, 100)
    diffusion.denoiser = Perfect(diffusion.kept)
    context = torch.tensor([[1.0, -1.0]]).expand(4000, 2)
    drawn = diffusion.sample(context, 50, 1.0, torch.Generator().manual_seed(0))
    assert drawn.mean(0).tolist() == pytest.approx([3, -3], abs=0.05)
    expected = deviation_by_ancestors(diffusion.kept.tolist(), 50)
    assert drawn.std(0).tolist() == pytest.approx([expected] * 2, rel=0.04)
    # Steps of this size are known to lose some of the spread.
    assert 0.4 < expected < 0.5
    guided = diffusion.sample(context, 50, 0.5, torch.Generator().manual_seed(0))
    assert guided.mean(0).tolist() == pytest.approx([1.5, -1.5], abs=0.05)


def test_standardised_vectors_come_back_in_their_own_scale() -> None:
    diffusion = Diffusion(Denoiser(2, 2, 4, 1), 2, 100)
    generator = torch.Generator().manual_seed(0)
    mean, deviation = torch.randn(500, 2, generator=generator) * 3 + 7, torch.full((500, 2), 0.5)
    diffusion.standardise(mean, deviation)
    assert diffusion.mean.tolist() == pytest.approx(mean.mean(0).tolist())
    sampled = mean + deviation * torch.randn(500, 2, generator=generator)
    assert diffusion.deviation.tolist() == pytest.approx(sampled.std(0).tolist(), rel=0.05)
    diffusion.denoiser = Perfect(diffusion.kept)
    drawn = diffusion.sample(torch.zeros(2000, 2), 50, 1.0, generator)
    assert drawn.mean(0).tolist() == pytest.approx(diffusion.mean.tolist(), abs=0.15)


def test_the_loss_of_the_best_denoiser_is_what_noise_leaves_unknown() -> None:
    diffusion = Diffusion(Denoiser(2, 2, 4, 1), 2, 100)
    diffusion.denoiser = Perfect(diffusion.kept)
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(50_000, 2, generator=generator)
    latent = 3 * context + 0.5 * torch.randn(50_000, 2, generator=generator)
    kept = diffusion.kept
    unknown = (0.25 * (1 - kept) / (0.25 * kept + 1 - kept)).mean()
    assert float(diffusion.loss(latent, context, 0.0, generator)) == pytest.approx(float(unknown), rel=0.02)
    # Rows that lose their text are told apart: their estimate is worse.
    assert float(diffusion.loss(latent, context, 0.5, generator)) > 5 * float(unknown)


def test_a_denoiser_begins_with_nothing_and_reads_time_and_text() -> None:
    made = Denoiser(3, 5, 16, 2)
    noisy, context = torch.randn(4, 3), torch.randn(4, 5)
    time, no = torch.tensor([0, 1, 50, 99]), torch.zeros(4, dtype=torch.bool)
    assert bool((made(noisy, time, context, no) == 0).all())
    seeded(made)
    before = made(noisy, time, context, no)
    assert not torch.allclose(before, made(noisy, time.flip(0), context, no))
    assert not torch.allclose(before, made(noisy, time, context.flip(0), no))
    without = made(noisy, time, context, ~no)
    torch.testing.assert_close(without, made(noisy, time, context.flip(0), ~no))


def test_the_published_denoiser_has_as_many_weights() -> None:
    """2,180,120 with a width of 256 and 8 blocks, the learned vector of no text not counted."""
    made = Denoiser(24, 256, 256, 8)
    assert sum(one.numel() for one in made.parameters()) - made.nothing.numel() == 2_180_120
