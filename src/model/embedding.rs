//! The public embedding block: token ids to the encoder's first hidden states.
//!
//! Client and oracle call the same functions. Sums run in `f64` in a fixed order with IEEE operations only, so that every
//! platform computes the same integers.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use super::ModelError;

/// How a table's numbers are stored, little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single-precision number.
    Bf16,
}

impl TableType {
    /// Bytes of a number.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Decodes numbers; trailing bytes short of a number are ignored.
    pub(crate) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        fn map<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.as_chunks::<N>().0.iter().map(|&c| f(c)).collect()
        }
        match self {
            Self::F32 => map(bytes, f32::from_le_bytes),
            Self::F16 => map(bytes, |c| f16::from_le_bytes(c).to_f32()),
            Self::Bf16 => map(bytes, |c| bf16::from_le_bytes(c).to_f32()),
        }
    }
}

/// A table of `rows` vectors of `cols` numbers, row-major, in the checkpoint's own number format.
#[derive(Clone, PartialEq)]
pub struct Table {
    rows: usize,
    cols: usize,
    dtype: TableType,
    bytes: Vec<u8>,
}

impl Table {
    /// A table; `None` if `bytes` has not exactly `rows * cols` numbers or one of them is not finite.
    pub fn new(rows: usize, cols: usize, dtype: TableType, bytes: Vec<u8>) -> Option<Self> {
        let expected = rows.checked_mul(cols)?.checked_mul(dtype.size())?;
        let step = cols.max(1) * dtype.size();
        let finite = || bytes.chunks(step).all(|row| dtype.decode(row).iter().all(|x| x.is_finite()));
        (bytes.len() == expected && cols > 0 && finite()).then_some(Self { rows, cols, dtype, bytes })
    }

    /// Number of vectors.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers of a vector.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How the numbers are stored.
    pub fn dtype(&self) -> TableType {
        self.dtype
    }

    /// All rows, `cols * dtype.size()` bytes each.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Row `i`; `None` outside the table.
    pub fn row(&self, i: usize) -> Option<Vec<f32>> {
        let stride = self.cols * self.dtype.size();
        (i < self.rows).then(|| self.dtype.decode(&self.bytes[i * stride..(i + 1) * stride]))
    }
}

/// Tables of words, positions and token types, and the LayerNorm that follows their sum.
#[derive(Clone, PartialEq)]
pub struct EmbeddingBlock {
    /// One row a token id.
    pub word: Table,
    /// One row a position.
    pub position: Table,
    /// One row a token type.
    pub token_type: Table,
    /// LayerNorm's gain.
    pub gain: Vec<f32>,
    /// LayerNorm's bias.
    pub bias: Vec<f32>,
    /// Added to the variance before the root.
    pub epsilon: f64,
    /// Token id of padding.
    pub pad_id: u32,
    /// Whether `sum * gain + bias` stands in for the LayerNorm, as in an approximated model.
    pub affine: bool,
}

impl EmbeddingBlock {
    /// Hidden size d.
    pub fn hidden(&self) -> usize {
        self.word.cols
    }

    /// Whether all parts have one width, and padding and the first type have rows.
    pub fn is_consistent(&self) -> bool {
        let d = self.hidden();
        self.position.cols == d
            && self.token_type.cols == d
            && self.gain.len() == d
            && self.bias.len() == d
            && self.gain.iter().chain(&self.bias).all(|x| x.is_finite())
            && self.epsilon.is_finite()
            && self.epsilon >= 0.0
            && (self.pad_id as usize) < self.word.rows
            && self.token_type.rows > 0
            && self.position.rows > 0
    }

    /// Hidden states of the tokens, `ids.len() x d` real numbers.
    ///
    /// # Errors
    /// [`ModelError::Input`] if an id, a type or a position has no row.
    pub fn embed_real(&self, ids: &[u32], types: &[u32]) -> Result<Vec<f64>, ModelError> {
        if ids.len() != types.len() {
            return Err(ModelError::Input { reason: format!("{} tokens but {} token types", ids.len(), types.len()) });
        }
        let absent = |what: &str, i: usize, rows: usize| ModelError::Input {
            reason: format!("{what} {i} is outside the model's table of {rows}"),
        };
        let d = self.hidden();
        let mut out = Vec::with_capacity(ids.len() * d);
        for (i, (&id, &kind)) in ids.iter().zip(types).enumerate() {
            let word = self.word.row(id as usize).ok_or_else(|| absent("token id", id as usize, self.word.rows))?;
            let position = self.position.row(i).ok_or_else(|| absent("position", i, self.position.rows))?;
            let kind_row = self
                .token_type
                .row(kind as usize)
                .ok_or_else(|| absent("token type", kind as usize, self.token_type.rows))?;
            let sum: Vec<f64> = (0..d).map(|c| word[c] as f64 + position[c] as f64 + kind_row[c] as f64).collect();
            if self.affine {
                out.extend((0..d).map(|c| sum[c] * f64::from(self.gain[c]) + f64::from(self.bias[c])));
                continue;
            }
            let mean = sum.iter().sum::<f64>() / d as f64;
            let variance = sum.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / d as f64;
            let scale = 1.0 / libm::sqrt(variance + self.epsilon);
            out.extend((0..d).map(|c| (sum[c] - mean) * scale * self.gain[c] as f64 + self.bias[c] as f64));
        }
        Ok(out)
    }

    /// Hidden states in fixed point with `frac` fraction bits, padded with `[PAD]` tokens of type 0 to `bucket` rows.
    ///
    /// # Errors
    /// [`ModelError::Input`] if there are more tokens than the bucket has rows, or a row is missing in a table.
    pub fn embed(&self, ids: &[u32], types: &[u32], bucket: usize, frac: u32) -> Result<Vec<i64>, ModelError> {
        if ids.len() > bucket {
            return Err(ModelError::Input { reason: format!("{} tokens do not fit {bucket}", ids.len()) });
        }
        let (mut ids, mut types) = (ids.to_vec(), types.to_vec());
        ids.resize(bucket, self.pad_id);
        types.resize(bucket, 0);
        let scale = libm::exp2(frac as f64);
        Ok(self.embed_real(&ids, &types)?.iter().map(|x| libm::round(x * scale) as i64).collect())
    }
}

/// The embedding block as a client sees it.
#[derive(Clone, PartialEq)]
pub enum Embedding {
    /// All of it: the client embeds its tokens.
    Public(EmbeddingBlock),
    /// Its shape: tokens are looked up in the graph.
    Private(EmbeddingShape),
}

/// The shape of an embedding block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingShape {
    /// Hidden size d.
    pub hidden: usize,
    /// Token ids.
    pub vocabulary: usize,
    /// Positions.
    pub positions: usize,
    /// Token types.
    pub types: usize,
    /// Token id of padding.
    pub pad_id: u32,
}

impl Embedding {
    /// The shape.
    pub fn shape(&self) -> EmbeddingShape {
        match self {
            Self::Private(shape) => *shape,
            Self::Public(e) => EmbeddingShape {
                hidden: e.hidden(),
                vocabulary: e.word.rows,
                positions: e.position.rows,
                types: e.token_type.rows,
                pad_id: e.pad_id,
            },
        }
    }

    /// The tables, if they are public.
    pub fn block(&self) -> Option<&EmbeddingBlock> {
        match self {
            Self::Public(block) => Some(block),
            Self::Private(_) => None,
        }
    }
}

impl EmbeddingShape {
    /// Whether it is the shape of a block that can be looked up in.
    pub fn is_consistent(&self) -> bool {
        let table = |rows: usize, most: usize| (1..=most).contains(&rows);
        table(self.hidden, 8192)
            && table(self.vocabulary, 1 << 20)
            && table(self.positions, 1 << 20)
            && table(self.types, 16)
            && (self.pad_id as usize) < self.vocabulary
    }

    /// One row a token, padded with `[PAD]` tokens of type 0 to `bucket` rows: 1 in the columns of its id and, after those of
    /// the vocabulary, of its type; else 0.
    ///
    /// # Errors
    /// [`ModelError::Input`] if there are more tokens than the bucket has rows, or no column or position for one.
    pub fn one_hot(&self, ids: &[u32], types: &[u32], bucket: usize) -> Result<Vec<i64>, ModelError> {
        let input = |reason: String| Err(ModelError::Input { reason });
        if ids.len() != types.len() || ids.len() > bucket || bucket > self.positions {
            let positions = self.positions;
            return input(format!("{} tokens of {} types do not fit {bucket} of {positions}", ids.len(), types.len()));
        }
        let padding = std::iter::repeat_n((&self.pad_id, &0), bucket - ids.len());
        let cols = self.vocabulary + self.types;
        let mut out = vec![0; bucket * cols];
        for (row, (&id, &kind)) in out.chunks_mut(cols.max(1)).zip(ids.iter().zip(types).chain(padding)) {
            if id as usize >= self.vocabulary || kind as usize >= self.types {
                return input(format!("token id {id} of type {kind} is outside the model's tables"));
            }
            row[id as usize] = 1;
            row[self.vocabulary + kind as usize] = 1;
        }
        Ok(out)
    }
}

/// The client's pooling weights for `len` real tokens of `bucket`: `round(2^frac / len)`, then 0 for padding.
pub fn pool_weights(len: usize, bucket: usize, frac: u32) -> Vec<i64> {
    let len = len.min(bucket);
    let scale = 1i64 << frac;
    let n = len.max(1) as i64;
    let weight = (2 * scale + n) / (2 * n);
    (0..bucket).map(|i| if i < len { weight } else { 0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: usize, values: &[f32]) -> Table {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Table::new(rows, values.len() / rows, TableType::F32, bytes).unwrap()
    }

    fn block() -> EmbeddingBlock {
        EmbeddingBlock {
            word: table(3, &[0.0, 0.0, 1.0, 3.0, -2.0, 5.0]),
            position: table(2, &[0.0, 0.0, 1.0, -1.0]),
            token_type: table(1, &[0.5, 0.5]),
            gain: vec![2.0, 2.0],
            bias: vec![0.25, 0.0],
            epsilon: 0.0,
            pad_id: 2,
            affine: false,
        }
    }

    #[test]
    fn a_row_of_two_normalises_to_plus_and_minus_one() {
        let e = block();
        // 1.5, 3.5 -> -1, 1 -> -2 + 0.25, 2; padding -2+1, 5-1 -> -1, 1 as well.
        assert_eq!(e.embed(&[1], &[0], 2, 4).unwrap(), [-28, 32, -28, 32]);
        assert!(e.is_consistent());
    }

    #[test]
    fn an_affine_block_neither_centres_nor_scales() {
        let e = EmbeddingBlock { affine: true, ..block() };
        // (1.5, 3.5) * 2 + (0.25, 0).
        assert_eq!(e.embed_real(&[1], &[0]).unwrap(), [3.25, 7.0]);
    }

    #[test]
    fn rows_outside_the_tables_are_refused() {
        let e = block();
        assert!(matches!(e.embed(&[3], &[0], 1, 4), Err(ModelError::Input { .. })));
        assert!(matches!(e.embed(&[1], &[1], 1, 4), Err(ModelError::Input { .. })));
        assert!(matches!(e.embed(&[1], &[0], 3, 4), Err(ModelError::Input { .. })));
        assert!(matches!(e.embed(&[1, 1], &[0, 0], 1, 4), Err(ModelError::Input { .. })));
        assert!(Table::new(1, 1, TableType::F16, vec![0x00, 0x7c]).is_none(), "infinity");
        assert!(Table::new(1, 2, TableType::F16, vec![0; 3]).is_none());
    }

    #[test]
    fn number_formats_decode() {
        assert_eq!(TableType::F16.decode(&[0x00, 0x3c, 0x00, 0xc0]), [1.0, -2.0]);
        assert_eq!(TableType::Bf16.decode(&[0x80, 0x3f]), [1.0]);
    }

    #[test]
    fn pooling_weights_round_to_nearest() {
        assert_eq!(pool_weights(3, 8, 16), [21845, 21845, 21845, 0, 0, 0, 0, 0]);
        assert_eq!(pool_weights(6, 8, 16)[..2], [10923, 10923]);
    }
}
