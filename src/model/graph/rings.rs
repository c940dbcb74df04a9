//! From what every edge needs to the rings of all edges: the narrowest that the nodes' rules allow.
//!
//! | node | rule |
//! |---|---|
//! | `Linear` | inputs alike; the output at most as wide, as each party reduces alone; modulo a prime, alike as well |
//! | `Product`, `SquareSum`, `RowSum`, `ShiftLeft` | operands and output alike |
//! | `RowScale` | scale and output alike, the rows at least as wide |
//! | `Garbled` | none |

use super::{EdgeId, Node, Op, RING_LIMIT, Rings, SpecError};
use crate::arith::{PrimeModulus, ShareModulus};

/// Largest dimension whose slots the primes fit.
const SLOTS: usize = 16384;

/// What an edge is built for.
pub(super) struct Need {
    /// `layer.name`, for errors.
    pub name: String,
    /// Bits of a signed ring that hold its values.
    pub bits: u32,
    /// Most bits that its products allow.
    pub limit: u32,
}

/// The ring of every edge.
///
/// # Errors
/// [`SpecError::Ring`] naming the first edge whose ring would be over its limit.
pub(super) fn assign(needs: &[Need], nodes: &[Node], rings: Rings) -> Result<Vec<ShareModulus>, SpecError> {
    let mut classes = Classes { parent: (0..needs.len()).collect() };
    // `(wider, narrower)`.
    let mut orders: Vec<(EdgeId, EdgeId)> = Vec::new();
    for node in nodes {
        let out = node.output;
        match &node.op {
            Op::Linear { inputs, .. } => {
                let Some((&first, rest)) = inputs.split_first() else { continue };
                rest.iter().for_each(|&e| classes.join(first, e));
                match rings {
                    Rings::Pow2 => orders.push((first, out)),
                    Rings::Prime => classes.join(first, out),
                }
            }
            Op::Product { left, right, .. } => {
                classes.join(*left, *right);
                classes.join(*left, out);
            }
            Op::SquareSum { input } | Op::RowSum { input } | Op::ShiftLeft { input, .. } => classes.join(*input, out),
            Op::RowScale { input, scale, .. } => {
                classes.join(*scale, out);
                orders.push((*input, out));
            }
            Op::Garbled { .. } => {}
        }
    }
    let class: Vec<usize> = (0..needs.len()).map(|e| classes.find(e)).collect();
    let mut bits = vec![0; needs.len()];
    let mut limits = vec![RING_LIMIT; needs.len()];
    for (need, &c) in needs.iter().zip(&class) {
        bits[c] = need.bits.max(bits[c]);
        limits[c] = need.limit.min(limits[c]);
    }
    // Edges are written before they are read, so that from the last node backwards one pass is almost always enough.
    loop {
        let before = bits.clone();
        for &(wide, narrow) in orders.iter().rev() {
            let (wide, narrow) = (class[wide.0], class[narrow.0]);
            bits[wide] = bits[wide].max(bits[narrow]);
        }
        if bits == before {
            break;
        }
    }
    let mut prime = vec![false; needs.len()];
    if rings == Rings::Prime {
        for node in nodes.iter().filter(|n| matches!(n.op, Op::Linear { .. } | Op::Product { .. })) {
            prime[class[node.output.0]] = true;
        }
    }
    let mut found: Vec<Option<ShareModulus>> = vec![None; needs.len()];
    for (need, &c) in needs.iter().zip(&class) {
        let limit = if prime[c] { limits[c].min(PrimeModulus::MAX_BITS) } else { limits[c] };
        let too_wide = || SpecError::Ring { edge: need.name.clone(), bits: bits[c], limit };
        if bits[c] > limit {
            return Err(too_wide());
        }
        if found[c].is_none() {
            let ring = if prime[c] { slots(bits[c], &found) } else { ShareModulus::pow2(bits[c]) };
            found[c] = Some(ring.ok_or_else(too_wide)?);
        }
    }
    let ring = |(e, need): (usize, &Need)| {
        found[class[e]].ok_or_else(|| SpecError::Ring { edge: need.name.clone(), bits: need.bits, limit: need.limit })
    };
    needs.iter().enumerate().map(ring).collect()
}

/// Fewest bits of a prime: ciphertexts have those of 30 bits and below, and no ring of shares may be one of theirs.
const LEAST_BITS: u32 = 31;

/// The largest prime of so many bits, or of a few more where there is none; looked for once.
fn slots(bits: u32, found: &[Option<ShareModulus>]) -> Option<ShareModulus> {
    let bits = bits.max(LEAST_BITS);
    let known = |t: &ShareModulus| matches!(t, ShareModulus::Prime(_)) && t.bits() == bits;
    let known = found.iter().flatten().copied().find(known);
    known.or_else(|| (bits..=PrimeModulus::MAX_BITS).find_map(|bits| ShareModulus::slots(bits, SLOTS)))
}

/// Edges that share a ring, by union and find.
struct Classes {
    parent: Vec<usize>,
}

impl Classes {
    fn find(&mut self, e: usize) -> usize {
        let mut root = e;
        while self.parent[root] != root {
            root = self.parent[root];
        }
        self.parent[e] = root;
        root
    }

    fn join(&mut self, a: EdgeId, b: EdgeId) {
        let (a, b) = (self.find(a.0), self.find(b.0));
        self.parent[a.max(b)] = a.min(b);
    }
}
