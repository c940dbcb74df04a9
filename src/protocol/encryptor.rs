//! The client's homomorphic work: it encrypts its shares and decrypts its parts of results, in whichever phase.

use std::{collections::HashSet, sync::Arc};

use zeroize::Zeroizing;

use super::{
    HeInput, HeItem, KeySets, Message, Plan, ProtocolError, Result, SecretVec, ShareSource, he_plan::add_cross_term,
};
use crate::{arith::sample::SecureRng, he::HeClient as HeKeys, packing::Packing};

/// Keys, and what the server holds of one inference.
pub struct Encryptor {
    plan: Arc<Plan>,
    keys: KeySets<HeKeys>,
    rng: SecureRng,
    /// Inputs of linear nodes that the server has got.
    uploaded: HashSet<HeInput>,
}

impl Encryptor {
    /// One that has sent nothing yet.
    pub fn new(plan: Arc<Plan>, keys: KeySets<HeKeys>, rng: SecureRng) -> Self {
        Self { plan, keys, rng, uploaded: HashSet::new() }
    }

    /// The shares that an item needs and the server does not have yet, encrypted.
    ///
    /// # Errors
    /// [`ProtocolError::Missing`] for a share that is not known yet, and what encryption reports.
    pub fn upload(&mut self, item: usize, shares: &dyn ShareSource) -> Result<Message> {
        let plan = self.plan.clone();
        let mut matrices = Vec::new();
        match &plan.he[item].1 {
            HeItem::Linear(inputs, packing) => {
                for (index, input) in inputs.iter().enumerate() {
                    if self.uploaded.insert(*input) {
                        let len = input.rows * plan.graph.edge(input.edge).cols;
                        let mut x = Zeroizing::new(Vec::with_capacity(input.together * len));
                        for inference in 0..input.together {
                            x.extend_from_slice(&shares.share(&plan.graph, input.edge, inference)?[..len]);
                        }
                        matrices.push(self.encrypt(item, &**packing, index, &x)?);
                    }
                }
            }
            HeItem::Product(terms, _) => {
                for (terms, packing) in terms {
                    let mut x = Zeroizing::new(Vec::new());
                    for term in terms {
                        let (id, cut) = term.encrypted;
                        let edge = plan.graph.edge(id);
                        x.extend(cut.take(&shares.share(&plan.graph, id, 0)?, edge.rows, edge.cols));
                    }
                    matrices.push(self.encrypt(item, &**packing, 0, &x)?);
                }
            }
        }
        Ok(Message::HeUpload { item: item as u32, matrices })
    }

    fn encrypt(&mut self, item: usize, packing: &dyn Packing, index: usize, x: &[u64]) -> Result<Vec<u8>> {
        let keys = self.keys.get(self.plan.he[item].1.set())?;
        let ciphertexts = packing.encrypt_input(keys, index, x, &mut self.rng)?;
        Ok(ciphertexts.to_bytes(keys.context().params()))
    }

    /// The client's part of an item's result, in the shape and ring of the node's output; of several inferences one after the
    /// other.
    ///
    /// # Errors
    /// Responses of other number or form than the item's.
    pub fn decrypt(&self, item: usize, responses: &[Vec<u8>]) -> Result<SecretVec> {
        let (id, work) = &self.plan.he[item];
        let graph = &self.plan.graph;
        let edge = graph.edge(graph.node(*id).output);
        let keys = self.keys.get(work.set())?;
        let read = |packing: &dyn Packing, bytes: &[u8]| -> Result<Zeroizing<Vec<u64>>> {
            let response = packing.read_output(keys.context().params(), bytes)?;
            Ok(Zeroizing::new(packing.decrypt_output(keys, &response)?))
        };
        match (work, responses) {
            (HeItem::Linear(_, packing), [response]) => {
                // In the ring of the inputs; the output's is at most as wide.
                let share = read(&**packing, response)?;
                Ok(SecretVec::new(share.iter().map(|&x| edge.ring.reduce(x)).collect()))
            }
            (HeItem::Product(terms, _), responses) if responses.len() == terms.len() => {
                let mut sum = SecretVec::new(vec![0; edge.len()]);
                for ((terms, packing), response) in terms.iter().zip(responses) {
                    let values = read(&**packing, response)?;
                    let (rows, cols) = (packing.spec().rows, packing.spec().cols);
                    for (term, part) in terms.iter().zip(values.chunks_exact(rows * cols)) {
                        add_cross_term(graph, *id, term, part, cols, &mut sum);
                    }
                }
                Ok(sum)
            }
            _ => Err(ProtocolError::Mismatch { detail: format!("ciphertexts of HE item {item}") }),
        }
    }
}
