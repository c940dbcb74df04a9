//! What a graph may be built with besides the model and the number of tokens: rings, merged boundaries, token lookup.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{DenseActivation, ModelSpec, Pooling};
use crate::arith::codec::CodecError;

/// A boundary between two linear operations, at which a garbled truncation stands unless it is merged ("computation
/// merge" of Primer, Zheng, Lou and Jiang, DAC 2023).
///
/// Merged, the operation after the boundary works on the values before it at their full scale, in a ring that holds its
/// result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boundary {
    /// Queries and keys to scores.
    Scores,
    /// Values to the product with softmax's numerators.
    Values,
    /// The scaled context to the attention output.
    Context,
    /// The attention output with its residual to its LayerNorm.
    AttentionNorm,
    /// The feed-forward output with its residual to its LayerNorm.
    DownNorm,
    /// The attention's normalised rows to the feed-forward part.
    Middle,
    /// The layer's normalised rows to the next layer or the head.
    Hidden,
    /// The mean of the rows to the first dense layer.
    Pool,
    /// A dense layer without activation to the next one.
    Dense,
}

impl Boundary {
    /// All boundaries, in the order in which [`super::Graph::largest_merge`] tries them: those of Primer first.
    pub const ALL: [Self; 9] = [
        Self::Scores,
        Self::Values,
        Self::Pool,
        Self::Dense,
        Self::AttentionNorm,
        Self::DownNorm,
        Self::Context,
        Self::Middle,
        Self::Hidden,
    ];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scores => "scores",
            Self::Values => "values",
            Self::Context => "context",
            Self::AttentionNorm => "attention norm",
            Self::DownNorm => "down norm",
            Self::Middle => "middle",
            Self::Hidden => "hidden",
            Self::Pool => "pool",
            Self::Dense => "dense",
        }
    }

    /// Whether a model has it.
    pub fn is_in(self, spec: &ModelSpec) -> bool {
        match self {
            Self::Pool => spec.pooling == Pooling::Mean,
            Self::Dense => {
                let before_last = spec.dense.len().saturating_sub(1);
                spec.dense.iter().take(before_last).any(|d| d.activation == DenseActivation::Identity)
            }
            _ => true,
        }
    }

    fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// A set of merged boundaries, in all layers alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MergeSet(u16);

impl MergeSet {
    /// No boundary: every product is truncated.
    pub const NONE: Self = Self(0);
    /// All boundaries. Rings seldom have room for this.
    pub const ALL: Self = Self((1 << Boundary::ALL.len()) - 1);

    /// Whether a boundary is merged.
    pub fn contains(self, boundary: Boundary) -> bool {
        self.0 & boundary.bit() != 0
    }

    /// With this boundary too.
    pub fn with(self, boundary: Boundary) -> Self {
        Self(self.0 | boundary.bit())
    }

    /// Without this boundary.
    pub fn without(self, boundary: Boundary) -> Self {
        Self(self.0 & !boundary.bit())
    }

    /// Whether nothing is merged.
    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }

    /// The merged boundaries, in the order of [`Boundary::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Boundary> {
        Boundary::ALL.into_iter().filter(move |&b| self.contains(b))
    }
}

impl FromIterator<Boundary> for MergeSet {
    fn from_iter<I: IntoIterator<Item = Boundary>>(boundaries: I) -> Self {
        boundaries.into_iter().fold(Self::NONE, Self::with)
    }
}

impl fmt::Display for MergeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        f.write_str(&self.iter().map(Boundary::name).collect::<Vec<_>>().join(", "))
    }
}

/// The rings of edges that homomorphic products touch. Inside a LayerNorm, rings are always powers of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rings {
    /// Powers of two, for packings in coefficients.
    #[default]
    Pow2,
    /// Primes that are 1 modulo 32768, for packings in slots of rings of dimension up to 16384.
    Prime,
}

/// Where the client's tokens become vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lookup {
    /// At the client: the embedding block is public.
    #[default]
    Public,
    /// In the graph: the client's input is one-hot, the table stays with the server.
    Private,
}

impl FromStr for Lookup {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "public" => Ok(Self::Public),
            "private" => Ok(Self::Private),
            _ => Err(format!("no token lookup {text}: there are public and private")),
        }
    }
}

/// Everything that decides a graph besides the model's description and the number of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GraphOptions {
    /// Merged boundaries.
    pub merge: MergeSet,
    /// Rings of homomorphic products.
    pub rings: Rings,
    /// Where tokens become vectors.
    pub lookup: Lookup,
}

impl GraphOptions {
    /// Bytes of the wire form.
    pub const BYTES: usize = 4;

    /// The wire form: the merged boundaries (`u16`, little endian), rings, lookup.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let [low, high] = self.merge.0.to_le_bytes();
        [low, high, self.rings as u8, self.lookup as u8]
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// [`CodecError::Invalid`] for bits that have no meaning.
    pub fn from_bytes([low, high, rings, lookup]: [u8; Self::BYTES]) -> Result<Self, CodecError> {
        let merge = u16::from_le_bytes([low, high]);
        if merge & !MergeSet::ALL.0 != 0 {
            return Err(CodecError::Invalid { what: "the merged boundaries" });
        }
        let rings = match rings {
            0 => Rings::Pow2,
            1 => Rings::Prime,
            _ => return Err(CodecError::Invalid { what: "the rings of the graph" }),
        };
        let lookup = match lookup {
            0 => Lookup::Public,
            1 => Lookup::Private,
            _ => return Err(CodecError::Invalid { what: "the token lookup" }),
        };
        Ok(Self { merge: MergeSet(merge), rings, lookup })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_back_and_nonsense_is_refused() {
        for merge in 0..=MergeSet::ALL.0 {
            for (rings, lookup) in [(Rings::Pow2, Lookup::Private), (Rings::Prime, Lookup::Public)] {
                let options = GraphOptions { merge: MergeSet(merge), rings, lookup };
                assert_eq!(GraphOptions::from_bytes(options.to_bytes()).unwrap(), options);
            }
        }
        assert_eq!(GraphOptions::from_bytes([0; 4]).unwrap(), GraphOptions::default());
        let [low, high] = (MergeSet::ALL.0 + 1).to_le_bytes();
        for bytes in [[low, high, 0, 0], [0, 0x80, 0, 0], [0, 0, 2, 0], [0, 0, 0, 2]] {
            assert!(matches!(GraphOptions::from_bytes(bytes), Err(CodecError::Invalid { .. })), "{bytes:?}");
        }
    }

    #[test]
    fn lookups_are_read() {
        assert_eq!(("public".parse(), "private".parse()), (Ok(Lookup::Public), Ok(Lookup::Private)));
        assert!("hidden".parse::<Lookup>().unwrap_err().contains("no token lookup hidden"));
    }

    #[test]
    fn a_boundary_changes_alone() {
        for b in Boundary::ALL {
            let one = MergeSet::NONE.with(b);
            assert_eq!(one.iter().collect::<Vec<_>>(), [b]);
            assert_eq!(one.without(b), MergeSet::NONE);
            assert!(!MergeSet::ALL.without(b).contains(b));
        }
        assert_eq!(Boundary::ALL.into_iter().collect::<MergeSet>(), MergeSet::ALL);
        assert_eq!(MergeSet::NONE.with(Boundary::Values).with(Boundary::Scores).to_string(), "scores, values");
        assert_eq!(MergeSet::NONE.to_string(), "none");
    }
}
