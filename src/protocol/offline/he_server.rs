//! The server's HE lane offline: linear maps and cross terms of the client's encrypted masks, masked, flooded and packed.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use zeroize::Zeroizing;

use crate::{
    arith::sample::SecureRng,
    he::HeServer as HeKeys,
    model::{EdgeId, NodeId, Op, ServerWeights},
    packing::{CoefficientPacking, EncryptedMatrix},
    protocol::{
        HeItem, Machine, Message, Plan, ProtocolError, Result, SecretVec, ServerCorrelation, ServerProduct, Turn,
        he_plan::add_cross_term, shares::uniform, weights::linear_weights,
    },
};

/// The server's machine of the HE lane.
pub struct HeServer {
    plan: Arc<Plan>,
    correlation: Arc<ServerCorrelation>,
    weights: Arc<ServerWeights>,
    keys: Arc<HeKeys>,
    rng: SecureRng,
    /// Encrypted inputs of linear nodes and the last item that reads each.
    inputs: HashMap<(EdgeId, usize), EncryptedMatrix>,
    last_use: HashMap<(EdgeId, usize), usize>,
    next: usize,
    reply: Option<Message>,
    working: Option<NodeId>,
}

impl HeServer {
    /// A machine that makes all HE items of the plan.
    pub fn new(
        plan: Arc<Plan>,
        correlation: Arc<ServerCorrelation>,
        weights: Arc<ServerWeights>,
        keys: Arc<HeKeys>,
        rng: SecureRng,
    ) -> Self {
        let mut last_use = HashMap::new();
        for (item, (_, work)) in plan.he.iter().enumerate() {
            if let HeItem::Linear { inputs, rows, .. } = work {
                last_use.extend(inputs.iter().map(|&e| ((e, *rows), item)));
            }
        }
        Self {
            plan,
            correlation,
            weights,
            keys,
            rng,
            inputs: HashMap::new(),
            last_use,
            next: 0,
            reply: None,
            working: None,
        }
    }

    fn linear(
        &mut self,
        id: NodeId,
        item: usize,
        (inputs, rows, packing): (&[EdgeId], usize, &CoefficientPacking),
        mut matrices: std::vec::IntoIter<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        let plan = self.plan.clone();
        let params = self.keys.context().params();
        for (&edge, layout) in inputs.iter().zip(packing.inputs()) {
            if let Entry::Vacant(slot) = self.inputs.entry((edge, rows)) {
                let bytes = matrices.next().ok_or_else(|| wrong(item))?;
                slot.insert(EncryptedMatrix::from_bytes(params, layout, &bytes)?);
            }
        }
        if matrices.next().is_some() {
            return Err(wrong(item));
        }
        let view = linear_weights(&self.weights, &plan.graph, id)?;
        let wide: Vec<i64> = view.weights.iter().map(|&w| w as i64).collect();
        let mut operands = Vec::new();
        let mut row = 0;
        for &edge in inputs {
            let matrix = self.inputs.get(&(edge, rows)).ok_or_else(|| wrong(item))?;
            let inner = plan.graph.edge(edge).cols;
            operands.push((matrix, &wide[row * view.outputs..(row + inner) * view.outputs]));
            row += inner;
        }
        let (response, mask) = packing.multiply(&self.keys, &operands, &mut self.rng)?;
        self.correlation.put_linear(id, mask);
        // Memory: an input's ciphertexts go with their last use.
        self.inputs.retain(|key, _| self.last_use.get(key).is_some_and(|&last| last > item));
        Ok(packing.write_response(params, &response))
    }

    fn product(&mut self, id: NodeId, item: usize, matrices: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        let plan = self.plan.clone();
        let graph = &plan.graph;
        let HeItem::Product(terms) = &plan.he[item].1 else { return Err(wrong(item)) };
        let Op::Product { left, right, .. } = graph.node(id).op else { return Err(wrong(item)) };
        if matrices.len() != terms.len() {
            return Err(wrong(item));
        }
        let mut draw = |edge: EdgeId| {
            let edge = graph.edge(edge);
            SecretVec::new(uniform(edge.ring, edge.len(), &mut self.rng))
        };
        let masks = ServerProduct { left_mask: draw(left), right_mask: draw(right) };
        let params = self.keys.context().params();
        let mut responses = Vec::new();
        for ((terms, packing), bytes) in terms.iter().zip(matrices) {
            let matrix = EncryptedMatrix::from_bytes(params, &packing.inputs()[0], &bytes)?;
            let t = packing.spec().t;
            let mut operand = Zeroizing::new(Vec::new());
            for term in terms {
                let (mask, edge) = if term.operand_left {
                    (&masks.left_mask, graph.edge(left))
                } else {
                    (&masks.right_mask, graph.edge(right))
                };
                let cut = Zeroizing::new(term.operand.take(mask, edge.rows, edge.cols));
                operand.extend(cut.iter().map(|&x| t.to_signed(x)));
            }
            let (response, z) = packing.multiply(&self.keys, &[(&matrix, &operand)], &mut self.rng)?;
            let z = Zeroizing::new(z);
            let (rows, cols) = (packing.spec().rows, packing.spec().cols);
            self.correlation.with_product(id, graph.edge(graph.node(id).output).len(), |sum| {
                for (term, part) in terms.iter().zip(z.chunks_exact(rows * cols)) {
                    add_cross_term(graph, id, term, part, cols, sum);
                }
            });
            responses.push(packing.write_response(params, &response));
        }
        self.correlation.put_masks(id, masks);
        Ok(responses)
    }
}

fn wrong(item: usize) -> ProtocolError {
    ProtocolError::Mismatch { detail: format!("encrypted shares of HE item {item}") }
}

impl Machine for HeServer {
    fn advance(&mut self, incoming: Option<Message>) -> Result<Turn> {
        if let Some(message) = incoming {
            let found = message.name();
            let plan = self.plan.clone();
            let (at, matrices) = match message {
                Message::HeUpload { item, matrices } if item as usize == self.next => (self.next, matrices),
                _ => {
                    let expected = "the encrypted shares of the next item";
                    return Err(ProtocolError::Unexpected { lane: "server HE lane", expected, found });
                }
            };
            let (id, work) = &plan.he[at];
            self.working = Some(*id);
            let responses = match work {
                HeItem::Linear { inputs, rows, packing } => {
                    vec![self.linear(*id, at, (inputs, *rows, packing), matrices.into_iter())?]
                }
                HeItem::Product(_) => self.product(*id, at, matrices)?,
            };
            self.next += 1;
            self.reply = Some(Message::HeResponse { item: at as u32, responses });
        }
        if let Some(message) = self.reply.take() {
            return Ok(Turn::Send(message));
        }
        Ok(if self.next == self.plan.he.len() { Turn::Done } else { Turn::Receive })
    }

    fn node(&self) -> Option<NodeId> {
        self.working
    }

    fn progress(&self) -> (u64, u64) {
        (self.next as u64, self.plan.he.len() as u64)
    }
}
