//! What both parties derive from a graph alone: circuits, chunks, the order of the offline work.

use std::{collections::HashMap, sync::Arc};

use super::{
    ProtocolError, Result,
    he_plan::{HeItem, he_items},
};
use crate::{
    arith::ShareModulus,
    he::ParameterSet,
    model::{Function, Graph, NodeId, Op},
    mpc::{
        garble::{
            Gadget, GadgetError,
            half_gates::{GROUP, tables_len},
        },
        shared::ProductShape,
    },
};

/// Correlated OTs of one chunk: 2 MiB of extension matrix.
const CHUNK_OTS: usize = 1 << 17;
/// Bytes of garbled tables of one chunk.
const CHUNK_TABLES: usize = 16 << 20;
/// Bytes of one product message.
const CHUNK_PRODUCT: usize = 8 << 20;

/// A garbled node: one gadget, evaluated for many instances.
#[derive(Clone)]
pub struct GarbledPlan {
    /// The gadget of one instance.
    pub gadget: Arc<Gadget>,
    /// Instances in all.
    pub instances: usize,
    /// Instances of a chunk (the last one may have fewer).
    pub per_chunk: usize,
}

impl GarbledPlan {
    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        self.instances.div_ceil(self.per_chunk)
    }

    /// Instances of a chunk.
    pub fn chunk(&self, index: usize) -> std::ops::Range<usize> {
        let start = index * self.per_chunk;
        start..(start + self.per_chunk).min(self.instances)
    }

    /// Elements of a chunk.
    pub fn elements(&self, index: usize) -> std::ops::Range<usize> {
        let range = self.chunk(index);
        range.start * self.gadget.cols()..range.end * self.gadget.cols()
    }

    /// AND gates in all.
    pub fn and_gates(&self) -> u64 {
        self.gadget.circuit().and_count() as u64 * self.instances as u64
    }
}

/// A node whose offline part is products by correlated OT.
#[derive(Clone, Copy, Debug)]
pub struct ProductPlan {
    /// Rows (of squares: elements; of scalings: pairs of row and head) in all.
    pub rows: usize,
    /// Rows of a chunk.
    pub per_chunk: usize,
    /// Ring elements of a message: 1 for squares, columns of a head for scalings.
    pub width: usize,
    /// Ring of operands and result.
    pub ring: ShareModulus,
    /// Whether the products of the other direction are needed too.
    pub both: bool,
}

impl ProductPlan {
    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        self.rows.div_ceil(self.per_chunk)
    }

    /// Rows of a chunk.
    pub fn chunk(&self, index: usize) -> std::ops::Range<usize> {
        let start = index * self.per_chunk;
        start..(start + self.per_chunk).min(self.rows)
    }

    /// Shape of a chunk's messages.
    pub fn shape(&self, index: usize) -> Result<ProductShape> {
        Ok(ProductShape::new(self.chunk(index).len(), self.width, self.ring)?)
    }
}

/// Offline work of the OT lane for one node.
#[derive(Clone)]
pub enum OtPlan {
    /// Tables and the client's labels.
    Garbled(GarbledPlan),
    /// Products of shares.
    Product(ProductPlan),
}

impl OtPlan {
    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        match self {
            Self::Garbled(g) => g.chunks(),
            Self::Product(p) => p.chunks(),
        }
    }
}

/// What both parties derive from a graph.
pub struct Plan {
    /// The graph.
    pub graph: Graph,
    /// The HE lane's work, in execution order.
    pub he: Vec<(NodeId, HeItem)>,
    ot: HashMap<NodeId, OtPlan>,
}

impl Plan {
    /// Derives circuits and chunks.
    pub fn new(graph: Graph, params: &ParameterSet) -> Result<Self> {
        let mut cache: HashMap<String, Arc<Gadget>> = HashMap::new();
        let mut ot = HashMap::new();
        for (id, node) in graph.iter() {
            match &node.op {
                Op::Garbled { .. } => {
                    ot.insert(id, OtPlan::Garbled(garbled_plan(&graph, id, &mut cache)?));
                }
                Op::SquareSum { input } => {
                    let edge = graph.edge(*input);
                    ot.insert(id, product_plan(edge.len(), 1, edge.ring, false));
                }
                Op::RowScale { input, heads, .. } => {
                    let edge = graph.edge(*input);
                    ot.insert(id, product_plan(edge.rows * heads, edge.cols / heads, edge.ring, true));
                }
                _ => {}
            }
        }
        let he = he_items(&graph, params)?;
        Ok(Self { graph, he, ot })
    }

    /// The OT lane's work for a node, if it has any.
    pub fn ot(&self, node: NodeId) -> Option<&OtPlan> {
        self.ot.get(&node)
    }

    /// The plan of a garbled node.
    ///
    /// # Errors
    /// [`ProtocolError::Mismatch`] if the node is not garbled.
    pub fn garbled(&self, node: NodeId) -> Result<&GarbledPlan> {
        match self.ot.get(&node) {
            Some(OtPlan::Garbled(plan)) => Ok(plan),
            _ => Err(ProtocolError::Mismatch { detail: format!("node {} is not a garbled one", node.0) }),
        }
    }

    /// AND gates of all garbled nodes.
    pub fn and_gates(&self) -> u64 {
        self.ot.values().map(|p| if let OtPlan::Garbled(g) = p { g.and_gates() } else { 0 }).sum()
    }

    /// Nodes with work in the OT lane, in execution order: garbled ones, or product ones, or both.
    pub fn ot_nodes(&self, garbled: bool, products: bool) -> Vec<NodeId> {
        let wanted = |id: &NodeId| match self.ot.get(id) {
            Some(OtPlan::Garbled(_)) => garbled,
            Some(OtPlan::Product(_)) => products,
            None => false,
        };
        self.graph.iter().map(|(id, _)| id).filter(wanted).collect()
    }
}

fn garbled_plan(graph: &Graph, id: NodeId, cache: &mut HashMap<String, Arc<Gadget>>) -> Result<GarbledPlan> {
    let node = graph.node(id);
    let Op::Garbled { function, input } = &node.op else {
        return Err(ProtocolError::Mismatch { detail: format!("{} is not garbled", node.name) });
    };
    let (from, to) = (graph.edge(*input), graph.edge(node.output));
    let elements = if matches!(function, Function::Exp(_)) { from.cols } else { 1 };
    let key = format!("{function:?} {:?} {:?} {elements}", from.ring, to.ring);
    let gadget = match cache.get(&key) {
        Some(gadget) => gadget.clone(),
        None => {
            let gadget = build(function, elements, from.ring, to.ring)
                .map_err(|e| ProtocolError::Garble(format!("{}: {e}", node.name)))?;
            cache.entry(key).or_insert(Arc::new(gadget)).clone()
        }
    };
    let instances = from.len() / elements;
    let ots = gadget.circuit().evaluator_inputs().max(1);
    let tables = tables_len(gadget.circuit(), 1).map_err(|e| ProtocolError::Garble(e.to_string()))?.max(1);
    let per_chunk = (CHUNK_OTS / ots).min(CHUNK_TABLES / tables).clamp(1, instances.max(1));
    // Whole lockstep groups where there are several.
    let per_chunk = if per_chunk > GROUP { per_chunk / GROUP * GROUP } else { per_chunk };
    Ok(GarbledPlan { gadget, instances, per_chunk })
}

fn build(
    function: &Function,
    cols: usize,
    ring_in: ShareModulus,
    ring_out: ShareModulus,
) -> std::result::Result<Gadget, GadgetError> {
    match function {
        Function::Truncate { shift } => Gadget::truncate(ring_in, *shift, ring_out),
        Function::Activation(f) => Gadget::activation(f, &f.table(), ring_in, ring_out),
        Function::Exp(f) => Gadget::exp_row(f, &f.table(), cols, ring_in, ring_out),
        Function::Power { table, numerator, in_frac, out_frac } => {
            Gadget::power(table, &table.tables(*numerator, *in_frac, *out_frac), ring_in, ring_out)
        }
        Function::Tanh(f) => Gadget::tanh(f, &f.table(), ring_in, ring_out),
    }
}

fn product_plan(rows: usize, width: usize, ring: ShareModulus, both: bool) -> OtPlan {
    let bits = ring.bits() as usize;
    let row_bytes = (width * bits * (bits + 1) / 16).max(1);
    let per_chunk = (CHUNK_OTS / bits).min(CHUNK_PRODUCT / row_bytes).clamp(1, rows.max(1));
    OtPlan::Product(ProductPlan { rows, per_chunk, width, ring, both })
}
