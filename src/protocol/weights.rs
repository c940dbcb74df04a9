//! The server's integer weights, as the protocol reads them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use zeroize::Zeroizing;

use super::{ProtocolError, Result};
use crate::{
    arith::ShareModulus,
    engine::{Backend, Buffer, RingGemmShape, RingOperand, cpu::matmul, small_words},
    model::{EdgeId, Graph, NodeId, Op, ServerWeights, WeightId, WeightMatrix},
};

/// The weights where the online phase multiplies by them: in host memory and, for layers that gain from it, as small integers
/// on the device too, from their first use on.
pub struct OnlineWeights {
    weights: Arc<ServerWeights>,
    device: Option<Device>,
}

struct Device {
    backend: Arc<dyn Backend>,
    /// Fewest multiplications for which a product goes to the device.
    least: usize,
    /// Blocks of rows by their matrix and first row.
    blocks: Mutex<BTreeMap<(WeightId, usize), Buffer>>,
}

/// Below this many multiplications, about half a millisecond of a CPU core (`ring_gemm` in `kernels-bench/RESULTS.md`), the way
/// to a GPU and back is taken to cost more than it saves. Not measured on a GPU yet.
const LEAST_ON_GPU: usize = 1 << 23;

impl OnlineWeights {
    /// Products on CPU threads.
    pub fn host(weights: Arc<ServerWeights>) -> Self {
        Self { weights, device: None }
    }

    /// Products on `backend` where it is a GPU and they are large; all of them where it is a GPU checked by the CPU.
    pub fn on(weights: Arc<ServerWeights>, backend: Arc<dyn Backend>) -> Self {
        let least = match backend.info().kind {
            "gpu" => LEAST_ON_GPU,
            "dual" => 0,
            _ => return Self::host(weights),
        };
        Self { weights, device: Some(Device { backend, least, blocks: Mutex::default() }) }
    }

    /// `sum_k x_k W_k + bias` in the ring of the output, on the server's shares.
    pub(super) fn linear(&self, graph: &Graph, node: NodeId, parts: &[(EdgeId, &[u64])]) -> Result<Vec<u64>> {
        let view = linear_weights(&self.weights, graph, node)?;
        let edge = graph.edge(graph.node(node).output);
        let Op::Linear { bias_shift, .. } = graph.node(node).op else {
            return Err(ProtocolError::Mismatch { detail: format!("{} is not linear", graph.node(node).name) });
        };
        let scale = edge.ring.reduce(1 << bias_shift.min(63));
        let bias = |i| view.bias_row(i).unwrap_or_default().iter();
        let mut sum: Vec<u64> =
            (0..edge.rows).flat_map(bias).map(|&b| edge.ring.mul(edge.ring.from_signed(b), scale)).collect();
        let mut row = 0;
        for &(id, x) in parts {
            let inner = graph.edge(id).cols;
            // Only the first rows take part where the node says so.
            let x = x
                .get(..edge.rows * inner)
                .ok_or_else(|| ProtocolError::Mismatch { detail: "rows of a share".into() })?;
            let block = &view.weights[row * view.outputs..(row + inner) * view.outputs];
            let product = match (&self.device, &graph.node(node).op) {
                (Some(device), Op::Linear { weights, .. })
                    if x.len() * view.outputs >= device.least && matches!(edge.ring, ShareModulus::PowerOfTwo(_)) =>
                {
                    device.product((*weights, row), x, block, [edge.rows, inner, view.outputs], edge.ring)?
                }
                _ => matmul(x, block, edge.rows, inner, view.outputs, edge.ring)?,
            };
            sum.iter_mut().zip(&product).for_each(|(s, &p)| *s = edge.ring.add(*s, p));
            row += inner;
        }
        Ok(sum)
    }
}

impl Device {
    /// `x` (`rows x inner`) times a block of weights (`inner x cols`) in `ring`.
    fn product(
        &self,
        key: (WeightId, usize),
        x: &[u64],
        block: &[i32],
        [rows, inner, cols]: [usize; 3],
        ring: ShareModulus,
    ) -> Result<Vec<u64>> {
        let weights = self.weights(key, block)?;
        let shape = RingGemmShape { bits: ring.bits(), batch: 1, rows, inner, cols };
        let words = shape.element_words();
        let split = |&x: &u64| [x as u32, (x >> 32) as u32].into_iter().take(words);
        let x: Zeroizing<Vec<u32>> = Zeroizing::new(x.iter().flat_map(split).collect());
        let product = self.backend.ring_gemm(&self.backend.upload(&x)?, &weights, RingOperand::Small, shape)?;
        let product = Zeroizing::new(self.backend.download(&product)?);
        Ok(product.chunks(words).map(|word| word.iter().rev().fold(0, |x, &w| x << 32 | w as u64)).collect())
    }

    fn weights(&self, key: (WeightId, usize), block: &[i32]) -> Result<Buffer> {
        // Held while uploading: two connections must not both upload a layer.
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(buffer) = blocks.get(&key) {
            return Ok(buffer.clone());
        }
        let small = |&w: &i32| i16::try_from(w).ok();
        let small: Option<Vec<i16>> = block.iter().map(small).collect();
        let small = small.ok_or_else(|| ProtocolError::Mismatch { detail: "weights have at most 15 bits".into() })?;
        let buffer = self.backend.upload(&small_words(&small))?;
        blocks.insert(key, buffer.clone());
        Ok(buffer)
    }
}

/// The matrix of a linear node, its shape checked against the graph.
pub(super) fn linear_weights<'a>(weights: &'a ServerWeights, graph: &Graph, node: NodeId) -> Result<&'a WeightMatrix> {
    let Op::Linear { weights: id, inputs, .. } = &graph.node(node).op else {
        return Err(ProtocolError::Mismatch { detail: format!("{} is not linear", graph.node(node).name) });
    };
    let view = weights.get(*id).ok_or_else(|| ProtocolError::Missing { what: format!("the weights {id:?}") })?;
    let rows: usize = inputs.iter().map(|&e| graph.edge(e).cols).sum();
    let cols = graph.edge(graph.node(node).output).cols;
    if (view.inputs, view.outputs) != (rows, cols) || view.weights.len() != rows * cols {
        return Err(ProtocolError::Mismatch {
            detail: format!("{id:?} is {} x {}, the graph wants {rows} x {cols}", view.inputs, view.outputs),
        });
    }
    let out = graph.edge(graph.node(node).output);
    if view.bias_row(out.rows.saturating_sub(1)).is_none() {
        return Err(ProtocolError::Mismatch { detail: format!("{id:?} has no bias for {} rows", out.rows) });
    }
    Ok(view)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        arith::sample::{SecureRng, uniform_ring},
        engine::cpu::CpuBackend,
        model::Model,
    };

    #[test]
    fn products_on_a_device_are_those_of_the_host() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bert-tiny-sst2");
        let model = Model::load(&dir).unwrap();
        let graph = model.client().graph(8).unwrap();
        let host = OnlineWeights::host(model.weights().clone());
        let device = Device { backend: Arc::new(CpuBackend::new(None)), least: 0, blocks: Mutex::default() };
        let device = OnlineWeights { weights: model.weights().clone(), device: Some(device) };
        let mut rng = SecureRng::from_os().unwrap();
        let mut seen = 0;
        for (i, node) in graph.nodes.iter().enumerate() {
            let Op::Linear { inputs, .. } = &node.op else { continue };
            let shares: Vec<(EdgeId, Vec<u64>)> = inputs
                .iter()
                .map(|&id| {
                    let mut share = vec![0; graph.edge(id).len()];
                    uniform_ring(&mut rng, graph.edge(id).ring, &mut share);
                    (id, share)
                })
                .collect();
            let parts: Vec<(EdgeId, &[u64])> = shares.iter().map(|(id, share)| (*id, share.as_slice())).collect();
            let ring = graph.edge(node.output).ring;
            let reduce = |x: Vec<u64>| x.into_iter().map(|x| ring.reduce(x)).collect::<Vec<_>>();
            // Twice: uploaded first, then found there.
            for _ in 0..2 {
                let found = device.linear(&graph, NodeId(i), &parts).unwrap();
                assert_eq!(reduce(found), reduce(host.linear(&graph, NodeId(i), &parts).unwrap()), "{}", node.name);
            }
            seen += 1;
        }
        assert!(seen > 8);
    }
}
