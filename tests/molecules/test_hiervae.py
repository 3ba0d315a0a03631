"""HierVAE's motifs and trees, and its network against a plain version that goes message by message."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rdkit import Chem
from torch import Tensor, nn

from tests.molecules.test_train import RUNTIME, TINY
from unbackdoor.errors import DataError, InputError
from unbackdoor.molecules.data import Pairs, checked, filter_pairs, read_table
from unbackdoor.molecules.hiervae import HierVAEDecoder, HierVocabulary, MotifTree, read_trees, tree_of
from unbackdoor.molecules.hiervae.attachment import Attachment
from unbackdoor.molecules.hiervae.decoder import TRIED
from unbackdoor.molecules.hiervae.graph import Graph, clusters_of, junctions, parts_of, sanitised
from unbackdoor.molecules.hiervae.messages import POSITIONS, SumLSTM
from unbackdoor.molecules.hiervae.node import ROOT
from unbackdoor.molecules.hiervae.writing import ITERATIONS, LABELS, ORDERS, PLACES
from unbackdoor.molecules.model import GraphEncoder, Graphs, MoleculeVAE
from unbackdoor.molecules.model.graphs import CHARGES
from unbackdoor.molecules.motifs import Vocabulary
from unbackdoor.molecules.saved import load_generator, save_generator
from unbackdoor.molecules.train import train_generator
from unbackdoor.testing.samples import same_state, state_of

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
        "CCC1CS1",
        "Cc1ccc2ccccc2c1",
        "CC12CCCCC1CCCC2",
        "CC(C)(C)CC1(C)CCCC1",
    )
]
VOCABULARY, COVERED, TREES = read_trees(SMILES, 100, None)


def seeded(decoder: HierVAEDecoder) -> HierVAEDecoder:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1]))
    return decoder.eval()


def decoder() -> HierVAEDecoder:
    return seeded(HierVAEDecoder(VOCABULARY, 6, 16))


def latents(count: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(count, 6, generator=torch.Generator().manual_seed(1))


# ---- motifs and trees


def parts(smiles: str) -> set[tuple[str, int]]:
    return {(part, len(atoms)) for part, atoms in parts_of(Graph.of(str(checked(smiles))))}


def test_parts_keep_last_atoms_and_a_copy_of_the_ring_atom() -> None:
    assert parts("Cc1ccc(CCO)cc1") == {("Cc1ccccc1", 7), ("CCCO", 4)}
    assert parts("c1ccccc1-c1ccccn1") == {("c1ccccc1", 6), ("c1ccncc1", 6)}
    assert parts("CCO") == {("CCO", 3)}


def test_motifs_are_bonds_and_rings_and_common_parts_are_one() -> None:
    smiles = str(checked("Cc1ccc2ccccc2c1"))
    sizes = sorted(len(one) for one in clusters_of(Graph.of(smiles), frozenset()))
    assert sizes == [2, 6, 6]
    assert [len(one) for one in clusters_of(Graph.of(smiles), frozenset({smiles}))] == [11]
    assert [len(one) for one in clusters_of(Graph.of("C"), frozenset())] == [1]


def test_an_atom_where_several_motifs_meet_is_a_motif_but_not_between_rings_that_share_a_bond() -> None:
    clusters, neighbours = junctions(clusters_of(Graph.of("CC(C)(C)C"), frozenset()))
    assert [len(one) for one in clusters] == [2, 2, 2, 2, 1]
    assert neighbours[4] == [0, 1, 2, 3]
    clusters, neighbours = junctions(clusters_of(Graph.of("CC12CCCCC1CCCC2"), frozenset()))
    rings = [number for number, one in enumerate(clusters) if len(one) == 6]
    assert len(clusters) == 3
    assert rings[1] in neighbours[rings[0]]


@pytest.mark.parametrize("smiles", SMILES)
def test_a_tree_says_all_of_its_molecule(smiles: str) -> None:
    """Atoms and bonds of the nodes, put together here, make the molecule again."""
    tree = tree_of(smiles, frozenset())
    atoms = [label for node in tree.nodes for label in node.new_atoms]
    bonds = [bond for node in tree.nodes for bond in node.new_bonds]
    molecule = sanitised(atoms, bonds)
    assert molecule is not None
    assert Chem.MolToSmiles(molecule) == smiles
    for node in tree.nodes[1:]:
        above = tree.nodes[node.parent]
        assert set(node.places[node.place]) <= set(above.atoms)
        assert [node.atoms[place] for place in node.attachment.shared] == list(node.places[node.place])


def test_places_that_look_alike_are_one() -> None:
    """A group on a ring that hangs on something: ortho, meta, para, and the atom that is taken."""
    tree = tree_of(str(checked("Cc1ccc(F)cc1")), frozenset())
    places = [len(node.places) for node in tree.nodes if node.attachment.motif == "CF"]
    assert places == [4]


def test_what_trees_cannot_say_is_refused_and_counted() -> None:
    three_rings_at_an_atom = "c1cc2cccc3c2c(c1)CC3"
    with pytest.raises(DataError, match="share atoms"):
        tree_of(str(checked(three_rings_at_an_atom)), frozenset())
    _, covered, trees = read_trees(["CCO", str(checked(three_rings_at_an_atom)), "CCN"], 100, None)
    assert covered == [0, 2]
    assert len(trees) == 2
    with pytest.raises(DataError, match="0 kinds"):
        read_trees([str(checked(three_rings_at_an_atom))], 100, None)


def test_a_walk_goes_down_every_edge_once_and_up_again() -> None:
    for tree in TREES:
        steps = tree.walk()
        assert sum(down for _, down in steps) == len(tree.nodes) - 1
        assert len(steps) == 2 * len(tree.nodes) - 1
        assert steps[-1] == (0, False)


def test_real_molecules_come_back(shared_data: Path) -> None:
    pairs, _ = filter_pairs(read_table(str(shared_data / "chebi20"), "test"))
    smiles = pairs.smiles[:400]
    vocabulary, covered, trees = read_trees(smiles, 20, None)
    # Published code fails for 1.5 % of the training set, and loses bonds of others without a word.
    assert len(covered) / len(smiles) > 0.9
    assert vocabulary.parts
    # As measured on the training set, with more motifs that are whole parts.
    assert 8 < sum(len(tree.nodes) for tree in trees) / len(trees) < 18


# ---- the vocabulary


def test_a_vocabulary_comes_back_and_covers_its_molecules() -> None:
    again = HierVocabulary.from_json(VOCABULARY.to_json())
    assert again == VOCABULARY
    assert again.digest() == VOCABULARY.digest()
    assert all(again.covers(tree) for tree in TREES)
    assert not again.covers(tree_of("CCI", frozenset()))
    anchors = {anchor for one in again.attachments for anchor in one.anchors}
    assert anchors <= set(again.number_of)
    for number, one in enumerate(again.attachments):
        assert [other.motif == one.motif for other in again.attachments] == [
            motif == again.motif_of[number] for motif in again.motif_of
        ]


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        {"parts": [], "attachments": []},
        {"parts": [7], "attachments": ["[CH4:1]"]},
        {"parts": ["C", "C"], "attachments": ["[CH4:1]"]},
        {"parts": [], "attachments": ["C"]},
        {"parts": [], "attachments": ["C("]},
        {"parts": [], "attachments": ["[CH4:3]"]},
        {"parts": [], "attachments": ["[13CH4:1]"]},
        {"parts": [], "attachments": ["[Na:1]"]},
        {"parts": [], "attachments": ["[CH3:1]" + "C" * 40]},
        {"parts": [], "attachments": ["c1cc[cH:1]cc1"]},
        {"parts": [], "attachments": ["F(F)(F)[CH3:1]"]},
        {"parts": [], "attachments": ["[CH4:1]" * 400]},
    ],
)
def test_a_strangers_vocabulary_is_checked(content: object) -> None:
    with pytest.raises(DataError):
        HierVocabulary.from_json(content)


# ---- the network


def test_a_message_is_that_of_a_loop_over_what_arrives() -> None:
    cell = SumLSTM(5, 4)
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(3, 5, generator=generator)
    hidden, state = torch.randn(2, 4, 4, generator=generator)
    of = torch.tensor([0, 0, 2, 0])
    found, cells = cell(given, hidden, state, of)
    for row in range(3):
        arriving = [number for number in range(4) if of[number] == row]
        expected = message(cell, given[row], [(hidden[number], state[number]) for number in arriving])
        torch.testing.assert_close(found[row], expected[0])
        torch.testing.assert_close(cells[row], expected[1])


def message(cell: SumLSTM, given: Tensor, arriving: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One message, from those that arrive."""
    width = cell.of_each.in_features
    total = torch.zeros(width)
    for hidden, _ in arriving:
        total = total + hidden
    gates = cell.of_given(given)
    into, out, new = (gates[: 3 * width] + cell.of_sum(total)).split(width)
    state = into.sigmoid() * new.tanh()
    for hidden, before in arriving:
        state = state + (gates[3 * width :] + cell.of_each(hidden)).sigmoid() * before
    return out.sigmoid() * state.tanh(), state


def one_hot(place: int, size: int) -> Tensor:
    return torch.eye(size)[place]


def label(atom: tuple[int, int]) -> Tensor:
    return one_hot(PLACES[atom[0]] * CHARGES + atom[1] + CHARGES // 2, LABELS)


class Plain:
    """The network for one molecule, with messages by their two ends."""

    def __init__(self, decoder: HierVAEDecoder, latent: Tensor, tree: MotifTree) -> None:
        self.decoder, self.latent, self.tree = decoder, latent, tree
        self.atoms: list[tuple[int, int]] = []
        self.bonds: dict[tuple[int, int], tuple[int, int]] = {}
        self.along: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        first = decoder.begin(latent)
        self.tree_messages = {(ROOT, 0): (first, torch.zeros_like(first))}
        self.attachment_messages = {(ROOT, 0): (torch.zeros_like(first), torch.zeros_like(first))}

    def add(self, number: int) -> None:
        node = self.tree.nodes[number]
        old = len(self.atoms)
        self.atoms += node.new_atoms
        new = []
        for one, other, order in node.new_bonds:
            for source, target in ((one, other), (other, one)):
                up = source >= old > target
                self.bonds[source, target] = (order, node.position if up else 0)
                new.append((source, target))
        zero = torch.zeros(self.decoder.begin.out_features)
        self.along |= dict.fromkeys(new, (zero, zero))
        for _ in range(ITERATIONS):
            fresh = {}
            for source, target in new:
                order, position = self.bonds[source, target]
                given = torch.cat((label(self.atoms[source]), one_hot(order - 1, ORDERS), one_hot(position, POSITIONS)))
                arriving = [self.along[edge] for edge in self.along if edge[1] == source and edge[0] != target]
                fresh[source, target] = message(self.decoder.atom_cell, given, arriving)
            self.along |= fresh

    def look(self, number: int) -> tuple[dict[int, Tensor], Tensor, Tensor, Tensor]:
        decoder, node = self.decoder, self.tree.nodes[number]
        zero = torch.zeros(decoder.begin.out_features)
        vectors = {}
        for atom in node.atoms:
            arriving = sum((self.along[edge][0] for edge in self.along if edge[1] == atom), zero)
            vectors[atom] = decoder.atom_out(torch.cat((label(self.atoms[atom]), arriving))).relu()
        kind = VOCABULARY.number_of[node.attachment.smiles]
        attachment = decoder.attachment_in(
            torch.cat((decoder.attachment.weight[kind], sum(vectors.values(), zero)))
        ).relu()
        arriving = sum((one[0] for edge, one in self.attachment_messages.items() if edge[1] == number), zero)
        state = decoder.attachment_out(torch.cat((attachment, arriving))).relu()
        motif = decoder.motif_in(torch.cat((decoder.motif.weight[VOCABULARY.motif_of[kind]], state))).relu()
        arriving = sum((one[0] for edge, one in self.tree_messages.items() if edge[1] == number), zero)
        return vectors, attachment, motif, decoder.motif_out(torch.cat((motif, arriving))).relu()

    def send(self, source: int, target: int, attachment: Tensor, motif: Tensor, position: int) -> Tensor:
        for messages, cell, own in (
            (self.attachment_messages, self.decoder.attachment_cell, attachment),
            (self.tree_messages, self.decoder.tree_cell, motif),
        ):
            arriving = [one for edge, one in messages.items() if edge[1] == source and edge[0] != target]
            messages[source, target] = message(cell, torch.cat((own, one_hot(position, POSITIONS))), arriving)
        return self.tree_messages[source, target][0]

    def kind(self, number: int, sent: Tensor) -> Tensor:
        """The logarithm of the probability of a node's motif and attachment."""
        chosen = VOCABULARY.number_of[self.tree.nodes[number].attachment.smiles]
        given = torch.cat((sent, self.latent))
        motif = VOCABULARY.motif_of[chosen]
        same = [other for other in range(len(VOCABULARY)) if VOCABULARY.motif_of[other] == motif]
        attachments = self.decoder.attachment_head(given)[same].log_softmax(0)
        return self.decoder.motif_head(given).log_softmax(0)[motif] + attachments[same.index(chosen)]

    def place(self, number: int, vectors: dict[int, Tensor]) -> Tensor:
        node = self.tree.nodes[number]
        scores = []
        for place in node.places:
            whole = torch.zeros(self.decoder.begin.out_features)
            for atom, anchor in zip(place, node.attachment.anchors):
                known = self.decoder.attachment.weight[VOCABULARY.number_of[anchor]]
                given = torch.cat((vectors[atom], known, one_hot(node.position, POSITIONS)))
                whole = whole + self.decoder.place(given).relu()
            scores.append(self.decoder.match(whole) @ self.latent)
        return torch.stack(scores).log_softmax(0)[node.place]

    def loss(self) -> Tensor:
        total = self.kind(0, self.tree_messages[ROOT, 0][0])
        self.add(0)
        written = 1
        for at, down in self.tree.walk():
            vectors, attachment, motif, state = self.look(at)
            logit = self.decoder.child_head(torch.cat((state, self.latent)))[0]
            total = total + nn.functional.logsigmoid(logit if down else -logit)
            if down:
                sent = self.send(at, written, attachment, motif, 0)
                total = total + self.kind(written, sent) + self.place(written, vectors)
                self.add(written)
                written += 1
            elif self.tree.nodes[at].parent != ROOT:
                node = self.tree.nodes[at]
                self.send(at, node.parent, attachment, motif, node.position)
        return -total


def test_the_loss_is_that_of_one_message_and_one_decision_after_the_other() -> None:
    made, latent = decoder(), latents(len(TREES))
    assert max(len(node.places) for tree in TREES for node in tree.nodes) > 2
    expected = torch.stack([Plain(made, latent[row], tree).loss() for row, tree in enumerate(TREES)])
    torch.testing.assert_close(made.loss(latent, TREES), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_an_untrained_decoder_writes_valid_molecules_that_are_not_too_large(scale: float) -> None:
    smiles = decoder().write(latents(40, scale))
    assert all(checked(one) == one for one in smiles)
    assert len(set(smiles)) > 4


def test_motifs_that_are_forbidden_are_not_even_tried() -> None:
    """With one motif left, fewer kinds of a child can be written than are tried, and soon none can be hung any more."""
    made, latent = decoder(), latents(20)
    with torch.no_grad():
        made.child_head[-1].bias.fill_(100)
    kept = "CS"
    assert 0 < sum(one.motif == kept for one in VOCABULARY.attachments) < TRIED
    made.forbid([motif for motif in made.motifs if motif != kept])
    assert set(made.write(latent)) == {"SC(S)(S)S"}
    with pytest.raises(InputError, match="no motif to begin"):
        made.forbid(made.motifs)


def test_what_is_written_does_not_depend_on_company() -> None:
    made, latent = decoder(), latents(12)
    together = made.write(latent)
    assert [made.write(latent[row : row + 1])[0] for row in range(12)] == together


def test_an_autoencoder_learns_a_few_molecules_by_heart() -> None:
    smiles = [
        str(checked(one)) for one in ("C", "CCO", "CC(=O)[O-]", "CC(Br)(F)N", "CC1CS1", "Cc1ccc(F)cc1", "Fc1ccccc1C")
    ]
    vocabulary, _, trees = read_trees(smiles, 100, None)
    assert max(len(node.places) for tree in trees for node in tree.nodes) > 2
    torch.manual_seed(0)
    vae = MoleculeVAE(GraphEncoder(2, 32, 16), HierVAEDecoder(vocabulary, 8, 48), 16, 8, 32)
    graphs, every = Graphs.of(smiles), torch.arange(len(smiles))
    optimizer = torch.optim.Adam(vae.parameters(), 6e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(220):
        optimizer.zero_grad()
        noise = torch.randn(len(smiles), 8, generator=generator)
        vae.loss(graphs.rows(every), trees, noise, 0.01).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 20.0)
        optimizer.step()
    mean, _ = vae.encode(graphs.rows(every))
    assert vae.decoder.write(mean) == smiles


# ---- in a generator


def test_a_generator_of_hiervae_is_trained_saved_and_draws(template_pairs: Pairs, tmp_path: Path) -> None:
    options = replace(TINY, decoder="HierVAE", common=5, hidden=24, autoencoder=replace(TINY.autoencoder, epochs=1))
    trained = train_generator(template_pairs.subset(range(120)), options, RUNTIME)
    vocabulary = trained.generator.vocabulary
    assert isinstance(vocabulary, HierVocabulary)
    assert vocabulary.parts
    path = tmp_path / "model.safetensors"
    save_generator(path, trained.generator, provenance={})
    loaded = load_generator(path).generator
    assert loaded.vocabulary == vocabulary
    assert same_state(state_of(loaded), state_of(trained.generator))
    prompts = template_pairs.texts[:3]
    drawn = loaded.draw(prompts, 1, RUNTIME)
    assert drawn == trained.generator.draw(prompts, 1, RUNTIME)
    assert all(checked(smiles) == smiles for samples in drawn.smiles for smiles in samples)
    with pytest.raises(InputError, match="of another decoder"):
        train_generator(template_pairs, TINY, RUNTIME, vocabulary=vocabulary)
    with pytest.raises(InputError, match="of another decoder"):
        train_generator(template_pairs, options, RUNTIME, vocabulary=Vocabulary((("C", 0),)))


def test_attachments_are_written_one_way() -> None:
    assert Attachment.named("[CH3:1][OH:2]").marks == (1, 2)
    with pytest.raises(DataError):
        Attachment.named("[OH:2][CH3:1]")
