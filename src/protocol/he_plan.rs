//! The HE lane's work: which matrices the client encrypts, and what the server computes from them.
//!
//! A linear node takes its inputs' shares as they are. A product of two shared matrices has two cross terms, each a linear
//! map of the client's share with the server's mask as the "weights":
//!
//! | node | term | encrypted `x` | operand `W` | result |
//! |---|---|---|---|---|
//! | `L R^T` per head | `A Rc^T` | `Rc_h` | `A_h^T` | transposed |
//! | | `Lc B^T` | `Lc_h` | `B_h^T` | as it is |
//! | `L R` per head | `A Rc` | `Rc_h^T` | `A_h^T` | transposed |
//! | | `Lc B` | `Lc_h` | `B_h` | as it is |
//! | sum of squares of X | `Xc A^T` | `Xc` | `A^T` | the diagonal, twice |

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{Layout, LinearClass, LinearMode, PackingKind, ProductMode, ProtocolError, Result, SetId, Settings};
use crate::{
    arith::ShareModulus,
    he::{HeError, ParameterSet},
    model::{Edge, EdgeId, Graph, NodeId, Op, PRODUCT_RING_LIMIT, WEIGHT_LIMIT},
    packing::{
        BatchColumnPacking, CoefficientLayout, CoefficientPacking, CostWeights, Counts, MatmulSpec, OperandBound,
        Packing, SlotMethod, SlotPacking,
    },
};

/// How a matrix is cut out of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cut {
    /// The first rows, all columns.
    Rows(usize),
    /// Columns of one head.
    Columns {
        /// Head.
        head: usize,
        /// Columns of a head.
        width: usize,
    },
    /// Columns of one head, transposed.
    ColumnsTransposed {
        /// Head.
        head: usize,
        /// Columns of a head.
        width: usize,
    },
    /// Rows of one head.
    HeadRows {
        /// Head.
        head: usize,
        /// Rows of a head.
        height: usize,
    },
    /// Rows of one head, transposed.
    HeadRowsTransposed {
        /// Head.
        head: usize,
        /// Rows of a head.
        height: usize,
    },
}

impl Cut {
    /// Rows and columns of the cut.
    pub fn shape(self, rows: usize, cols: usize) -> (usize, usize) {
        match self {
            Self::Rows(n) => (n, cols),
            Self::Columns { width, .. } => (rows, width),
            Self::ColumnsTransposed { width, .. } => (width, rows),
            Self::HeadRows { height, .. } => (height, cols),
            Self::HeadRowsTransposed { height, .. } => (cols, height),
        }
    }

    /// The cut of a row-major matrix.
    pub fn take(self, x: &[u64], rows: usize, cols: usize) -> Vec<u64> {
        match self {
            Self::Rows(n) => x[..n * cols].to_vec(),
            Self::Columns { head, width } => {
                let span = head * width..(head + 1) * width;
                x.chunks_exact(cols).flat_map(|row| row[span.clone()].iter().copied()).collect()
            }
            Self::ColumnsTransposed { head, width } => {
                (head * width..(head + 1) * width).flat_map(|c| (0..rows).map(move |r| x[r * cols + c])).collect()
            }
            Self::HeadRows { head, height } => x[head * height * cols..(head + 1) * height * cols].to_vec(),
            Self::HeadRowsTransposed { head, height } => {
                (0..cols).flat_map(|c| (head * height..(head + 1) * height).map(move |r| x[r * cols + c])).collect()
            }
        }
    }
}

/// One cross term of a product, for one head.
#[derive(Clone, Copy, Debug)]
pub struct CrossTerm {
    /// The client's matrix.
    pub encrypted: (EdgeId, Cut),
    /// The server's mask: of the left operand if `operand_left`, and how it is cut.
    pub operand_left: bool,
    /// Cut of the mask.
    pub operand: Cut,
    /// Head.
    pub head: usize,
    /// Whether the result is the transpose of the head's part of the output.
    pub transposed: bool,
}

/// The cross terms of a product node, each for all heads: two of a product of two matrices, one of a sum of squares, of which
/// only the diagonal counts; nothing for other nodes.
pub fn cross_terms(graph: &Graph, node: NodeId) -> Vec<Vec<CrossTerm>> {
    if let Op::SquareSum { input } = graph.node(node).op {
        let Edge { rows, cols, .. } = *graph.edge(input);
        let operand = Cut::ColumnsTransposed { head: 0, width: cols };
        let encrypted = (input, Cut::Rows(rows));
        return vec![vec![CrossTerm { encrypted, operand_left: true, operand, head: 0, transposed: false }]];
    }
    let Op::Product { left, right, heads, transpose_right, .. } = graph.node(node).op else { return Vec::new() };
    let (l, r) = (graph.edge(left), graph.edge(right));
    let width = r.cols / heads;
    let terms = |head: usize| {
        if transpose_right {
            let columns = Cut::Columns { head, width };
            let transposed = Cut::ColumnsTransposed { head, width };
            [
                CrossTerm {
                    encrypted: (right, columns),
                    operand_left: true,
                    operand: transposed,
                    head,
                    transposed: true,
                },
                CrossTerm {
                    encrypted: (left, columns),
                    operand_left: false,
                    operand: transposed,
                    head,
                    transposed: false,
                },
            ]
        } else {
            let height = l.rows / heads;
            [
                CrossTerm {
                    encrypted: (right, Cut::ColumnsTransposed { head, width }),
                    operand_left: true,
                    operand: Cut::HeadRowsTransposed { head, height },
                    head,
                    transposed: true,
                },
                CrossTerm {
                    encrypted: (left, Cut::HeadRows { head, height }),
                    operand_left: false,
                    operand: Cut::Columns { head, width },
                    head,
                    transposed: false,
                },
            ]
        }
    };
    let (first, second) = (0..heads).map(terms).map(|[a, b]| (a, b)).unzip();
    vec![first, second]
}

/// Adds the result of a cross term (`rows x cols`, row-major residues) to the product it belongs to, in its ring.
pub fn add_cross_term(graph: &Graph, node: NodeId, term: &CrossTerm, result: &[u64], cols: usize, sum: &mut [u64]) {
    if let Op::SquareSum { .. } = graph.node(node).op {
        // The square of a sum has its cross term twice.
        let diagonal = result.chunks_exact(cols).enumerate().filter_map(|(i, row)| row.get(i));
        let ring = graph.edge(graph.node(node).output).ring;
        sum.iter_mut().zip(diagonal).for_each(|(s, &x)| *s = ring.add(*s, ring.add(x, x)));
        return;
    }
    let Op::Product { heads, transpose_right, .. } = graph.node(node).op else { return };
    let out = graph.edge(graph.node(node).output);
    // Where element (i, j) of the head's part is in the output.
    let at = |i: usize, j: usize| {
        if transpose_right {
            (term.head * (out.rows / heads) + i) * out.cols + j
        } else {
            i * out.cols + term.head * (out.cols / heads) + j
        }
    };
    for (a, row) in result.chunks_exact(cols).enumerate() {
        for (b, &value) in row.iter().enumerate() {
            let s = &mut sum[if term.transposed { at(b, a) } else { at(a, b) }];
            *s = out.ring.add(*s, value);
        }
    }
}

/// An input of a linear node as it is encrypted. Nodes that have one in common share its ciphertexts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeInput {
    /// The edge.
    pub edge: EdgeId,
    /// Its first rows, which take part.
    pub rows: usize,
    /// What tells two layouts of one packing apart: the block, or the features of a ciphertext.
    pub layout: usize,
    /// Ciphertexts for each of the layout: digits of slot packings, 1 for others.
    pub digits: usize,
    /// The packing.
    pub packing: PackingKind,
    /// Inferences whose rows it has.
    pub together: usize,
    /// The parameter set.
    pub set: SetId,
}

/// When the parts of an item are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HePhase {
    /// Offline, all of it.
    Offline,
    /// Encrypted offline, multiplied online.
    Split,
    /// Online, all of it.
    Online,
}

/// The homomorphic work of one node.
pub enum HeItem {
    /// A linear node: its inputs, concatenated along features, and how they are laid out and multiplied.
    Linear(Vec<HeInput>, Arc<dyn Packing>),
    /// A product node: its cross terms, each packing for one of them or for one of all heads; and the parameter set.
    Product(Vec<(Vec<CrossTerm>, Arc<dyn Packing>)>, SetId),
}

impl HeItem {
    /// When its parts are done.
    pub fn phase(&self, settings: &Settings) -> HePhase {
        match (self, settings.linear, settings.products) {
            (Self::Linear(..), LinearMode::Offline, _) | (Self::Product(..), _, ProductMode::Masked) => {
                HePhase::Offline
            }
            (Self::Product(..), LinearMode::Offline, ProductMode::Fhgs) => HePhase::Split,
            (Self::Linear(..), LinearMode::Online, _) | (Self::Product(..), LinearMode::Online, _) => HePhase::Online,
        }
    }

    /// The parameter set.
    pub fn set(&self) -> SetId {
        match self {
            Self::Linear(inputs, _) => inputs.first().map_or(SetId::Matmul8192, |input| input.set),
            Self::Product(_, set) => *set,
        }
    }

    /// All packings.
    pub fn packings(&self) -> impl Iterator<Item = &Arc<dyn Packing>> {
        let (linear, terms) = match self {
            Self::Linear(_, packing) => (Some(packing), &[][..]),
            Self::Product(terms, _) => (None, &terms[..]),
        };
        linear.into_iter().chain(terms.iter().map(|(_, packing)| packing))
    }

    /// Inferences whose rows it has: more than one only for linear layers that are prepared together.
    pub fn together(&self) -> usize {
        match self {
            Self::Linear(inputs, _) => inputs.first().map_or(1, |input| input.together),
            Self::Product(..) => 1,
        }
    }

    /// The edges whose shares the client encrypts.
    pub fn encrypted(&self) -> Vec<EdgeId> {
        match self {
            Self::Linear(inputs, _) => inputs.iter().map(|input| input.edge).collect(),
            Self::Product(terms, _) => {
                terms.iter().flat_map(|(terms, _)| terms.iter().map(|t| t.encrypted.0)).collect()
            }
        }
    }
}

/// Homomorphic work, in execution order, each item in the smallest parameter set that carries it.
pub fn he_items(graph: &Graph, params: &ParameterSet, settings: &Settings) -> Result<Vec<(NodeId, HeItem)>> {
    items(graph, params, settings, true)
}

/// The linear layers of [`he_items`] alone.
pub(super) fn linear_items(graph: &Graph, params: &ParameterSet, settings: &Settings) -> Result<Vec<(NodeId, HeItem)>> {
    items(graph, params, settings, false)
}

fn items(graph: &Graph, params: &ParameterSet, settings: &Settings, products: bool) -> Result<Vec<(NodeId, HeItem)>> {
    let classes = LinearClass::all(graph).into_iter().enumerate();
    let kinds: HashMap<NodeId, PackingKind> =
        classes.flat_map(|(i, class)| class.nodes.into_iter().map(move |id| (id, settings.packing_of(i)))).collect();
    let joint = joint(graph, settings, &kinds);
    let planner = |set, params| Planner {
        graph,
        set,
        params,
        settings,
        kinds: &kinds,
        joint: &joint,
        weights: weights(settings.layout),
        layouts: HashMap::new(),
    };
    let (smaller, larger) = (SetId::Column4096, SetId::Matmul16384);
    let mut planners =
        [planner(smaller, smaller.params()?), planner(SetId::Matmul8192, params), planner(larger, larger.params()?)];
    let mut items = Vec::new();
    for (id, node) in graph.iter() {
        let linear = matches!(node.op, Op::Linear { .. });
        if !linear && (!products || !multiplied_by_he(graph, id, settings.layout)) {
            continue;
        }
        let mut found = Err(ProtocolError::Missing { what: "parameter sets".into() });
        // The smaller set has no room for switching keys.
        let first = usize::from(kinds.get(&id) != Some(&PackingKind::BatchColumn));
        for planner in &mut planners[first..] {
            found = if linear { planner.linear(id) } else { planner.product(id) };
            if !matches!(found, Err(ProtocolError::He(HeError::Width { .. }))) {
                break;
            }
        }
        items.push((id, found?));
    }
    Ok(items)
}

/// The linear layers that are prepared for several inferences together: those in columns whose inputs the client knows before
/// anything else has been answered.
fn joint(graph: &Graph, settings: &Settings, kinds: &HashMap<NodeId, PackingKind>) -> HashSet<NodeId> {
    let (mut joint, mut open) = (HashSet::new(), HashSet::new());
    if settings.together <= 1 || settings.linear != LinearMode::Offline {
        return joint;
    }
    for (id, node) in graph.iter() {
        let waits = node.op.inputs().iter().any(|edge| open.contains(edge));
        match node.op {
            Op::Linear { .. } if !waits && kinds.get(&id) == Some(&PackingKind::BatchColumn) => {
                joint.insert(id);
            }
            Op::Linear { .. } => {
                open.insert(node.output);
            }
            // Shares of other outputs are masks, or follow from their inputs'.
            _ if node.op.is_local() && waits => {
                open.insert(node.output);
            }
            _ => {}
        }
    }
    joint
}

/// Chooses packings.
struct Planner<'a> {
    graph: &'a Graph,
    set: SetId,
    params: &'a ParameterSet,
    settings: &'a Settings,
    kinds: &'a HashMap<NodeId, PackingKind>,
    joint: &'a HashSet<NodeId>,
    weights: CostWeights,
    /// Layouts of coefficient packing by rows.
    layouts: HashMap<usize, CoefficientLayout>,
}

impl Planner<'_> {
    fn linear(&mut self, id: NodeId) -> Result<HeItem> {
        let node = self.graph.node(id);
        let kind = self.kinds.get(&id).copied().unwrap_or(self.settings.packing);
        let together = if self.joint.contains(&id) { usize::from(self.settings.together) } else { 1 };
        let (plan, layout, digits) = self.linear_packing(id, kind, together)?;
        let (rows, set) = (self.graph.edge(node.output).rows, self.set);
        let input = |edge| HeInput { edge, rows, layout, digits, packing: kind, together, set };
        Ok(HeItem::Linear(node.op.inputs().into_iter().map(input).collect(), plan))
    }

    /// The packing of a linear node, and what tells the layout of its inputs from others.
    fn linear_packing(
        &mut self,
        id: NodeId,
        kind: PackingKind,
        together: usize,
    ) -> Result<(Arc<dyn Packing>, usize, usize)> {
        let (params, mut spec) = (self.params, linear_spec(self.graph, id));
        if let Some(method) = slot_method(kind) {
            let packing = SlotPacking::new(params, method, &spec)?;
            let (layout, digits) = (packing.input_key(), packing.digits());
            return Ok((Arc::new(packing), layout, digits));
        }
        if kind == PackingKind::BatchColumn {
            spec.rows *= together;
            return Ok((Arc::new(BatchColumnPacking::new(params, &spec)?), 1, 1));
        }
        let layout = match self.layouts.get(&spec.rows) {
            Some(&layout) => layout,
            None => {
                let layout = self.linear_layout(spec.rows)?;
                self.layouts.insert(spec.rows, layout);
                layout
            }
        };
        Ok((Arc::new(CoefficientPacking::with_layout(params, &spec, &layout)?), layout.block, 1))
    }

    /// One layout for all linear nodes of as many rows in coefficient packing, since they share encrypted inputs: the cheapest
    /// in sum.
    fn linear_layout(&self, rows: usize) -> Result<CoefficientLayout> {
        let Self { graph, params, weights, .. } = self;
        let wanted = |id: &NodeId| {
            let coefficient = self.kinds.get(id) == Some(&PackingKind::Coefficient);
            coefficient && graph.edge(graph.node(*id).output).rows == rows
        };
        let nodes: Vec<NodeId> = graph.iter().map(|(id, _)| id).filter(wanted).collect();
        let stride = stride(params, rows);
        let mut best: Option<(f64, CoefficientLayout)> = None;
        let mut refusal = None;
        let mut block = stride.min(KEY_BLOCK);
        while block > 0 {
            let layout = CoefficientLayout { stride, block, split: 0, limbs: None };
            // Inputs that are shared have the limbs of the product that needs the most.
            let cost = nodes.iter().try_fold((0.0, 1), |(sum, limbs), &id| {
                CoefficientPacking::with_layout(params, &linear_spec(graph, id), &layout)
                    .map(|p| (sum + p.cost(weights), p.limbs().max(limbs)))
            });
            match cost {
                Ok((cost, limbs)) if best.is_none_or(|(c, _)| cost < c) => {
                    best = Some((cost, CoefficientLayout { limbs: Some(limbs), ..layout }));
                }
                Ok(_) => {}
                Err(e) => refusal = Some(e),
            }
            block /= 2;
        }
        match (best, refusal) {
            (Some((_, layout)), _) => Ok(layout),
            (None, Some(e)) => Err(e.into()),
            (None, None) => Err(ProtocolError::Mismatch { detail: format!("{rows} rows do not fit the ring") }),
        }
    }

    /// The cross terms of a product: all heads at once, or one by one where a packing serves no more.
    fn product(&self, id: NodeId) -> Result<HeItem> {
        let terms = cross_terms(self.graph, id);
        let ring = self.graph.edge(self.graph.node(id).op.inputs()[0]).ring;
        // Sums of squares keep a power of two, which has no slots.
        let in_slots = matches!(ring, ShareModulus::Prime(_)) || terms.len() > 1;
        let Some(method) = slot_method(self.settings.packing).filter(|_| in_slots) else {
            let plan = |terms: Vec<CrossTerm>| -> Result<(Vec<CrossTerm>, Arc<dyn Packing>)> {
                let spec = term_spec(self.graph, id, &terms);
                let packing = CoefficientPacking::choose(self.params, &spec, &self.weights)?;
                Ok((terms, Arc::new(packing)))
            };
            return Ok(HeItem::Product(terms.into_iter().map(plan).collect::<Result<_>>()?, self.set));
        };
        let mut items: Vec<(Vec<CrossTerm>, Arc<dyn Packing>)> = Vec::new();
        for terms in terms {
            let first = terms.first().map(|term| term_spec(self.graph, id, std::slice::from_ref(term)));
            let Some(spec) = first else { continue };
            let packing: Arc<dyn Packing> = Arc::new(SlotPacking::new(self.params, method, &spec)?);
            items.extend(terms.into_iter().map(|term| (vec![term], packing.clone())));
        }
        Ok(HeItem::Product(items, self.set))
    }
}

/// Whether the offline part of a node that multiplies shares is made by HE, and not by OT.
///
/// A sum of squares is the diagonal of `X X^T`: by HE it takes a sixth of the bytes, by OT less work.
pub(super) fn multiplied_by_he(graph: &Graph, node: NodeId, layout: Layout) -> bool {
    match graph.node(node).op {
        Op::Product { .. } => true,
        Op::SquareSum { input } => layout != Layout::Work && graph.edge(input).ring.bits() <= PRODUCT_RING_LIMIT,
        _ => false,
    }
}

fn slot_method(packing: PackingKind) -> Option<SlotMethod> {
    match packing {
        PackingKind::TokensFirst => Some(SlotMethod::TokensFirst),
        PackingKind::TokensFirstPlain => Some(SlotMethod::TokensFirstPlain),
        PackingKind::FeaturesFirst => Some(SlotMethod::FeaturesFirst),
        PackingKind::Coefficient | PackingKind::BatchColumn => None,
    }
}

/// Widest block that the client makes switching keys for.
pub const KEY_BLOCK: usize = 64;

/// What layouts are compared by.
fn weights(layout: Layout) -> CostWeights {
    let (upload, download) = match layout {
        Layout::Work => (20.0, 15.0),
        Layout::Balanced => (60.0, 40.0),
        Layout::Bytes => (100.0, 60.0),
        Layout::Least => (3000.0, 1500.0),
    };
    CostWeights { upload, download, max_block: KEY_BLOCK, fewest_limbs: true, ..CostWeights::default() }
}

/// What the homomorphic work of an item costs, both parties.
pub(super) struct ItemCosts {
    /// Its node.
    pub node: NodeId,
    /// When.
    pub phase: HePhase,
    /// Inferences that it serves.
    pub together: usize,
    /// Lengths of the matrices to the server that it does not have from items before.
    pub up: Vec<usize>,
    /// Lengths of the answers.
    pub down: Vec<usize>,
    /// Everything in sum. Transforms of the client are those of all inputs.
    pub counts: Counts,
}

/// What every item costs. Inputs that several linear layers share are uploaded once.
pub(super) fn item_costs(items: &[(NodeId, HeItem)], settings: &Settings) -> Result<Vec<ItemCosts>> {
    let mut uploaded = HashSet::new();
    let mut costs = Vec::with_capacity(items.len());
    for (node, item) in items {
        let (params, mut own) = (item.set().params()?, Counts::default());
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for packing in item.packings() {
            let mut counts = packing.counts();
            (counts.bytes_up, counts.ciphertexts_up) = (0, 0);
            let missing: Vec<usize> = match item {
                HeItem::Linear(inputs, _) => (0..inputs.len()).filter(|&k| uploaded.insert(inputs[k])).collect(),
                HeItem::Product(..) => vec![0],
            };
            for index in missing {
                let bytes = packing.input_bytes(params, index).unwrap_or(usize::MAX);
                counts.ciphertexts_up += packing.input_ciphertexts(index) as u64;
                counts.bytes_up += bytes as u64;
                up.push(bytes);
            }
            down.push(counts.bytes_down as usize);
            own += counts;
        }
        costs.push(ItemCosts {
            node: *node,
            phase: item.phase(settings),
            together: item.together(),
            up,
            down,
            counts: own,
        });
    }
    Ok(costs)
}

/// What homomorphic work costs in sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeCosts {
    /// Offline.
    pub offline: Counts,
    /// Online.
    pub online: Counts,
    /// Of the linear layers that are prepared for [`Settings::together`] inferences, for all of them.
    pub joint: Counts,
}

impl HeCosts {
    /// Everything that is made for one inference alone, in both phases.
    pub fn total(&self) -> Counts {
        let mut sum = self.offline;
        sum += self.online;
        sum
    }
}

/// What all items cost in sum.
pub(super) fn he_costs(items: &[(NodeId, HeItem)], settings: &Settings) -> Result<HeCosts> {
    let mut sum = HeCosts::default();
    for ItemCosts { phase, together, counts, .. } in item_costs(items, settings)? {
        let (mut up, mut work) = (Counts::default(), counts);
        std::mem::swap(&mut up.ciphertexts_up, &mut work.ciphertexts_up);
        std::mem::swap(&mut up.bytes_up, &mut work.bytes_up);
        match phase {
            HePhase::Offline if together > 1 => sum.joint += counts,
            HePhase::Offline => sum.offline += counts,
            HePhase::Split => {
                sum.offline += up;
                sum.online += work;
            }
            HePhase::Online => sum.online += counts,
        }
    }
    Ok(sum)
}

fn stride(params: &ParameterSet, rows: usize) -> usize {
    params.n() / rows.next_power_of_two()
}

fn linear_spec(graph: &Graph, node: NodeId) -> MatmulSpec {
    let inputs = graph.node(node).op.inputs();
    let out = graph.edge(graph.node(node).output);
    MatmulSpec {
        t: graph.edge(inputs[0]).ring,
        heads: 1,
        rows: out.rows,
        inner: inputs.iter().map(|&e| graph.edge(e).cols).collect(),
        cols: out.cols,
        operand: OperandBound::Weights { max_abs: WEIGHT_LIMIT },
    }
}

fn term_spec(graph: &Graph, node: NodeId, terms: &[CrossTerm]) -> MatmulSpec {
    let op = &graph.node(node).op;
    let (edge, cut) = terms[0].encrypted;
    let (rows, inner) = cut.shape(graph.edge(edge).rows, graph.edge(edge).cols);
    let operand = graph.edge(op.inputs()[if terms[0].operand_left { 0 } else { 1 }]);
    let (_, cols) = terms[0].operand.shape(operand.rows, operand.cols);
    MatmulSpec {
        t: graph.edge(edge).ring,
        heads: terms.len(),
        rows,
        inner: vec![inner],
        cols,
        operand: OperandBound::Uniform,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{arith::ShareModulus, model::Node, protocol::bilinear};

    /// The cross terms of all products, computed in the clear as the server would, add up to the bilinear map.
    #[test]
    fn cross_terms_add_up() {
        let ring = ShareModulus::pow2(64).unwrap();
        let edge = |name: &str, rows, cols| Edge { name: name.into(), rows, cols, ring, frac: 0 };
        let product =
            |transpose_right| Op::Product { left: EdgeId(0), right: EdgeId(1), heads: 2, transpose_right, mask: None };
        for (edges, op) in [
            (vec![edge("l", 5, 6), edge("r", 5, 6), edge("o", 10, 5)], product(true)),
            (vec![edge("l", 10, 5), edge("r", 5, 6), edge("o", 5, 6)], product(false)),
            (vec![edge("l", 2, 5), edge("r", 5, 6), edge("o", 1, 6)], product(false)),
            (vec![edge("x", 5, 6), edge("x", 5, 6), edge("o", 5, 1)], Op::SquareSum { input: EdgeId(0) }),
        ] {
            let squares = matches!(op, Op::SquareSum { .. });
            let graph = Graph {
                tokens: 5,
                options: Default::default(),
                nodes: vec![Node { name: "p".into(), layer: None, op, output: EdgeId(2) }],
                embedding: EdgeId(0),
                pool: None,
                output: EdgeId(2),
                stages: vec![],
                edges,
            };
            let fill = |k: u64, n: usize| (0..n as u64).map(|i| (i + 1).wrapping_mul(k)).collect::<Vec<u64>>();
            let (l, r) = (&graph.edges[0], &graph.edges[1]);
            let (lc, mut rc) = (fill(0x9e37_79b9_7f4a_7c15, l.len()), fill(0xbf58_476d_1ce4_e5b9, r.len()));
            let (a, mut b) = (fill(0x94d0_49bb_1331_11eb, l.len()), fill(0x2545_f491_4f6c_dd1d, r.len()));
            if squares {
                (rc, b) = (lc.clone(), a.clone());
            }
            let mut sum = vec![0; graph.edges[2].len()];
            for term in cross_terms(&graph, NodeId(0)).into_iter().flatten() {
                let (edge, cut) = term.encrypted;
                let e = graph.edge(edge);
                let x = cut.take(if edge == EdgeId(0) { &lc } else { &rc }, e.rows, e.cols);
                let (rows, inner) = cut.shape(e.rows, e.cols);
                let (o, mask) = if term.operand_left { (l, &a) } else { (r, &b) };
                let w = term.operand.take(mask, o.rows, o.cols);
                let (wr, cols) = term.operand.shape(o.rows, o.cols);
                assert_eq!(inner, wr);
                let mut y = vec![0u64; rows * cols];
                for i in 0..rows {
                    for j in 0..cols {
                        for k in 0..inner {
                            y[i * cols + j] =
                                y[i * cols + j].wrapping_add(x[i * inner + k].wrapping_mul(w[k * cols + j]));
                        }
                    }
                }
                add_cross_term(&graph, NodeId(0), &term, &y, cols, &mut sum);
            }
            let first = bilinear(&graph, NodeId(0), &a, &rc).unwrap();
            let second = bilinear(&graph, NodeId(0), &lc, &b).unwrap();
            let expected: Vec<u64> = first.iter().zip(&second).map(|(x, y)| x.wrapping_add(*y)).collect();
            assert_eq!(sum, expected);
        }
    }
}
