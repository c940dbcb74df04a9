//! The embedding block inside the graph: its table as a linear map of one-hot rows, and what can be proven of its sums.
//!
//! A row of the client's input is one-hot twice, in the columns of the token's id and of its type. Positions are public, and
//! their table is the map's bias, a row each. The LayerNorm's centring is in all three tables; its gain and bias are folded
//! into the first layer's maps, as every other LayerNorm's are into the maps after it.

use std::collections::BTreeMap;

use super::{
    Checkpoint, Norm, Table, WEIGHT_BITS, WeightId,
    quantize::{RealMatrix, fold_attention, least_squares},
    spec::{LookupSpec, Precision},
};

/// What a private lookup changes: the first layer's attention reads normalised rows, as all others do.
fn fold_first(c: &Checkpoint) -> BTreeMap<WeightId, RealMatrix> {
    let norm = Norm { gain: c.embedding.gain.clone(), bias: c.embedding.bias.clone() };
    fold_attention(c, 0, Some(&norm)).into_iter().collect()
}

/// The maps that a private lookup has in the place of their namesakes, and the tables of words and token types as the map of
/// a one-hot row: centred, with the positions as the bias of each row.
pub(crate) fn fold_lookup(c: &Checkpoint) -> BTreeMap<WeightId, RealMatrix> {
    let e = &c.embedding;
    let rows = |table: &Table| -> Vec<f64> {
        (0..table.rows()).flat_map(|i| table.row(i).unwrap_or_default()).map(f64::from).collect()
    };
    let weight = [rows(&e.word), rows(&e.token_type)].concat();
    let (inputs, outputs) = (e.word.rows() + e.token_type.rows(), e.hidden());
    let mut maps = fold_first(c);
    maps.insert(WeightId::Tokens, RealMatrix { inputs, outputs, weight, bias: rows(&e.position) }.centred());
    maps
}

/// Shapes, magnitudes and fraction bits of a private lookup, proven from the tables. `None` if weights are too large.
pub(crate) fn lookup_spec(c: &Checkpoint, precision: &Precision) -> Option<LookupSpec> {
    let e = &c.embedding;
    let d = e.hidden();
    let [word, position, kind] = [&e.word, &e.position, &e.token_type].map(Extremes::of);
    let limit = (1u64 << WEIGHT_BITS) as f64 - 0.5;
    let largest = word.largest().max(kind.largest());
    let table_frac = (1..=precision.weight_frac).rev().find(|&f| largest * libm::exp2(f as f64) < limit)?;
    // Each of the three is rounded once, by half a unit at most.
    let slack = 1.5 * libm::exp2(-(table_frac as f64));
    let sum = |j: usize| word.columns[j] + position.columns[j] + kind.columns[j];
    let element = (0..d).map(sum).fold(0.0, f64::max) + slack;
    let slack = slack * libm::sqrt(d as f64);
    let row = word.longest + position.longest + kind.longest + slack;
    let shortest = word.shortest - position.longest - kind.longest - slack;
    let log2 = |x: f64| libm::ceil(libm::log2(x.max(libm::exp2(-20.0)))) as i32;
    let least = least_squares(d);
    let proven = if shortest > 0.0 { libm::floor(2.0 * libm::log2(shortest)) as i32 } else { least };
    let first = fold_first(c);
    let frac = |id| first.get(&id).and_then(|m| m.weight_frac(precision.weight_frac));
    let qkv = [WeightId::Query(0), WeightId::Key(0), WeightId::Value(0)].map(frac);
    Some(LookupSpec {
        vocabulary: e.word.rows(),
        types: e.token_type.rows(),
        table_frac,
        sum_log2: log2(element),
        squares_log2: log2(row * row),
        squares_min_log2: proven.max(least).min(log2(row * row) - 1),
        qkv_weight_frac: qkv.into_iter().min().flatten()?,
        attention_weight_frac: frac(WeightId::AttentionOutput(0))?,
    })
}

/// Of a table's centred rows.
struct Extremes {
    /// Largest magnitude in every column.
    columns: Vec<f64>,
    /// Largest and smallest norm of a row.
    longest: f64,
    shortest: f64,
}

impl Extremes {
    fn of(table: &Table) -> Self {
        let mut found = Self { columns: vec![0.0; table.cols()], longest: 0.0, shortest: f64::INFINITY };
        for row in (0..table.rows()).filter_map(|i| table.row(i)) {
            let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / row.len() as f64;
            let mut squares = 0.0;
            for (column, x) in found.columns.iter_mut().zip(&row) {
                let x = f64::from(*x) - mean;
                *column = column.max(x.abs());
                squares += x * x;
            }
            let norm = libm::sqrt(squares);
            (found.longest, found.shortest) = (found.longest.max(norm), found.shortest.min(norm));
        }
        found
    }

    fn largest(&self) -> f64 {
        self.columns.iter().copied().fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TableType;

    #[test]
    fn extremes_are_those_of_centred_rows() {
        let values = [1.0f32, 3.0, 5.0, 0.0, 0.0, 0.0, -9.0, 0.0, 0.0];
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let found = Extremes::of(&Table::new(3, 3, TableType::F32, bytes).unwrap());
        assert_eq!(found.columns, [6.0, 3.0, 3.0]);
        assert_eq!(found.largest(), 6.0);
        assert_eq!((found.longest, found.shortest), (libm::sqrt(54.0), 0.0));
    }
}
