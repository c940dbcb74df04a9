//! The nodes of a graph, layer by layer.

use super::rings::{self, Need};
use super::widths::{ContextWidths, NormMagnitudes, NormWidths, hidden_log2, mask_distance, score_bits, signed_bits};
use super::{
    Boundary, Edge, EdgeId, Function, Graph, GraphOptions, Lookup, MERGED_RING_LIMIT, Node, Op, POOL_FRAC,
    PRODUCT_RING_LIMIT, RING_LIMIT, Rings, WeightId, ceil_log2, schedule,
};
use crate::{
    arith::{
        ShareModulus,
        fixed::{ActivationTable, ExpTable, PowerTable, RowPower, TanhTable},
    },
    model::{DenseActivation, LayerSpec, ModelSpec, Pooling, SpecError},
};

/// Until the rings of all edges are known.
const UNKNOWN: ShareModulus = ShareModulus::PowerOfTwo(64);

pub(super) struct Builder<'a> {
    spec: &'a ModelSpec,
    tokens: usize,
    options: GraphOptions,
    edges: Vec<Edge>,
    needs: Vec<Need>,
    nodes: Vec<Node>,
    layer: Option<usize>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(spec: &'a ModelSpec, tokens: usize, options: GraphOptions) -> Self {
        Self { spec, tokens, options, edges: Vec::new(), needs: Vec::new(), nodes: Vec::new(), layer: None }
    }

    pub(super) fn build(mut self) -> Result<Graph, SpecError> {
        self.check_options()?;
        let (embedding, mut hidden) = match self.options.lookup {
            Lookup::Public => {
                let f = self.spec.precision.hidden_frac;
                let bits = signed_bits(self.spec.embedding_log2, f);
                let x = self.edge("embedding", self.tokens, self.spec.hidden, bits, f)?;
                (x, x)
            }
            Lookup::Private => self.private_lookup()?,
        };
        for (i, layer) in self.spec.layers.iter().enumerate() {
            self.layer = Some(i);
            hidden = self.encoder_layer(i, layer, hidden)?;
        }
        self.layer = None;
        let (pool, output) = self.head(hidden)?;
        let rings = rings::assign(&self.needs, &self.nodes, self.options.rings)?;
        self.edges.iter_mut().zip(rings).for_each(|(edge, ring)| edge.ring = ring);
        let stages = schedule(&self.nodes, self.edges.len());
        let (tokens, options) = (self.tokens, self.options);
        Ok(Graph { tokens, options, edges: self.edges, nodes: self.nodes, embedding, pool, output, stages })
    }

    fn check_options(&self) -> Result<(), SpecError> {
        let inside_norms =
            [Boundary::Context, Boundary::AttentionNorm, Boundary::DownNorm, Boundary::Middle, Boundary::Hidden];
        if self.options.rings == Rings::Prime
            && let Some(b) = inside_norms.into_iter().find(|&b| self.merged(b))
        {
            let what = format!("prime rings and {} merged, where the ring must change", b.name());
            return Err(SpecError::Options { what });
        }
        if self.options.lookup == Lookup::Private && self.spec.lookup.is_none() {
            return Err(SpecError::Options {
                what: "private lookup, whose numbers the model's description lacks".into(),
            });
        }
        Ok(())
    }

    fn merged(&self, boundary: Boundary) -> bool {
        self.options.merge.contains(boundary)
    }

    /// The client's one-hot rows times the server's table, centred; positions are the bias of each row. Then LayerNorm.
    fn private_lookup(&mut self) -> Result<(EdgeId, EdgeId), SpecError> {
        let (spec, n, d) = (self.spec, self.tokens, self.spec.hidden);
        let Some(lookup) = &spec.lookup else { return Err(SpecError::Options { what: "private lookup".into() }) };
        let m = NormMagnitudes {
            log2: lookup.sum_log2,
            squares_log2: lookup.squares_log2,
            squares_min_log2: lookup.squares_min_log2,
        };
        let x = self.edge("one_hot", n, lookup.vocabulary + lookup.types, 2, 0)?;
        let raw =
            self.linear("embedding_raw", WeightId::Tokens, vec![x], false, (d, lookup.sum_log2, lookup.table_frac))?;
        // The table's own scale is as good as any: there is nothing to truncate.
        let y = self.layer_norm("embedding_norm", raw, m, true)?;
        let y = self.truncate("embedding", y, hidden_log2(spec), spec.precision.hidden_frac)?;
        Ok((x, y))
    }

    fn encoder_layer(&mut self, i: usize, l: &LayerSpec, x: EdgeId) -> Result<EdgeId, SpecError> {
        let spec = self.spec;
        let (n, heads, p) = (self.tokens, spec.heads, &spec.precision);
        let f = p.hidden_frac;
        let (qkv_weight_frac, attention_weight_frac) = spec.layer_weight_fracs(i, self.options.lookup);

        // Attention scores.
        let qkv_frac = self.frac(x) + qkv_weight_frac;
        let project = |b: &mut Self, name: &str, weights, log2, frac: Option<u32>| -> Result<EdgeId, SpecError> {
            let raw =
                b.linear(&format!("{name}_raw"), weights, vec![x], false, (spec.hidden, log2, qkv_weight_frac))?;
            match frac {
                Some(frac) => b.truncate(name, raw, log2, frac),
                None => Ok(raw),
            }
        };
        let merge_scores = self.merged(Boundary::Scores);
        let frac = (!merge_scores).then_some(p.query_key_frac);
        let q = project(self, "query", WeightId::Query(i), l.query_log2, frac)?;
        let k = project(self, "key", WeightId::Key(i), l.key_log2, frac)?;
        let context = ContextWidths::new(spec, l, n, &self.options, qkv_frac);
        let frac = (!self.merged(Boundary::Values)).then_some(context.value_frac);
        let v = project(self, "value", WeightId::Value(i), l.value_log2, frac)?;
        let score_frac = 2 * self.frac(q);
        let s = self.edge("scores", heads * n, n, score_bits(spec, l, self.frac(q)), score_frac)?;
        self.limit(s, if merge_scores { MERGED_RING_LIMIT } else { PRODUCT_RING_LIMIT })?;
        let mask = Some(-(mask_distance(spec, l) << score_frac));
        self.push("scores", Op::Product { left: q, right: k, heads, transpose_right: true, mask }, s);

        // Softmax: numerators, their sums, the product with the values, then the division.
        let exp_frac = context.exp_frac;
        let exp = ExpTable {
            in_frac: score_frac,
            frac_bits: p.score_frac.min(exp_frac),
            out_frac: exp_frac,
            error_ppm: p.exp_error_ppm,
        };
        let sum_bits = exp_frac + ceil_log2(n) + 2;
        let e = self.garbled("exp", s, Function::Exp(exp), exp_frac + 2, exp_frac)?;
        let sum = self.edge("exp_sum", heads * n, 1, sum_bits, exp_frac)?;
        self.push("exp_sum", Op::RowSum { input: e }, sum);
        let power = self.power(
            RowPower::Reciprocal,
            1.0,
            (exp_frac, context.reciprocal_frac),
            // On shares the largest numerator may round to just below 1, and the sum with it.
            exp_frac.saturating_sub(1),
            exp_frac + ceil_log2(n),
        )?;
        let r_frac = context.reciprocal_frac;
        let r = self.garbled("reciprocal", sum, power, r_frac + 3, r_frac)?;
        let (rows_log2, u_frac) = (l.value_log2 + ceil_log2(n) as i32, exp_frac + self.frac(v));
        let mut u = self.edge("weighted", n, spec.hidden, signed_bits(rows_log2, u_frac), u_frac)?;
        self.limit(u, context.limit)?;
        self.push("weighted", Op::Product { left: e, right: v, heads, transpose_right: false, mask: None }, u);
        if self.options.rings == Rings::Prime {
            u = self.truncate("weighted_low", u, rows_log2, context.scaled_frac)?;
        }
        let mut c = self.row_scale("context_raw", u, r, heads, signed_bits(l.value_log2, self.frac(u) + r_frac))?;
        if !self.merged(Boundary::Context) {
            let frac = self.frac(x).min(self.frac(c));
            c = self.truncate("context", c, l.value_log2, frac)?;
        }

        // Output projection with the residual, LayerNorm.
        let inputs = self.aligned(&[("context_shifted", c), ("residual_shifted", x)])?;
        let shape = (spec.hidden, l.attention_log2, attention_weight_frac);
        let raw = self.linear("attention_raw", WeightId::AttentionOutput(i), inputs, false, shape)?;
        let m = NormMagnitudes {
            log2: l.attention_log2,
            squares_log2: l.attention_squares_log2,
            squares_min_log2: l.attention_squares_min_log2,
        };
        let y = self.layer_norm("attention_norm", raw, m, self.merged(Boundary::AttentionNorm))?;
        let middle = self.normalised("attention_norm", y, Boundary::Middle)?;

        // Feed-forward with the residual, LayerNorm.
        let up = self.linear("up", WeightId::Up(i), vec![middle], false, (spec.ffn, l.up_log2, l.up_weight_frac))?;
        let table = ActivationTable {
            activation: spec.activation,
            in_frac: self.frac(up),
            out_frac: f,
            range_log2: p.activation_range_log2,
            error_ppm: p.activation_error_ppm,
        };
        let act = self.garbled("activation", up, Function::Activation(table), signed_bits(l.up_log2, f), f)?;
        let inputs = self.aligned(&[("activation_shifted", act), ("middle_shifted", middle)])?;
        let shape = (spec.hidden, l.down_log2, l.down_weight_frac);
        let raw = self.linear("down_raw", WeightId::Down(i), inputs, false, shape)?;
        let m = NormMagnitudes {
            log2: l.down_log2,
            squares_log2: l.down_squares_log2,
            squares_min_log2: l.down_squares_min_log2,
        };
        let y = self.layer_norm("down_norm", raw, m, self.merged(Boundary::DownNorm))?;
        self.normalised("down_norm", y, Boundary::Hidden)
    }

    /// Truncation unless merged, sum of squares, inverse root, scaling: rows of variance 1 before gain and bias, untruncated.
    fn layer_norm(&mut self, name: &str, raw: EdgeId, m: NormMagnitudes, merged: bool) -> Result<EdgeId, SpecError> {
        let n = self.edges[raw.0].rows;
        let w = NormWidths::new(self.spec, m, merged.then(|| self.frac(raw)));
        let x = match (merged, self.options.rings) {
            (true, Rings::Pow2) => raw,
            _ => self.truncate(&format!("{name}_in"), raw, m.log2, w.frac)?,
        };
        self.widen(x, w.rows_bits);
        let ss = self.edge(&format!("{name}_squares"), n, 1, w.squares_bits + 1, 2 * w.frac)?;
        self.push(&format!("{name}_squares"), Op::SquareSum { input: x }, ss);
        let power = self.power(
            RowPower::InverseSqrt,
            (self.spec.hidden as f64).sqrt(),
            (2 * w.frac, w.scale_frac),
            w.squares_min_bits,
            w.squares_bits.max(w.squares_min_bits + 1) - 1,
        )?;
        let r = self.garbled(&format!("{name}_scale"), ss, power, w.scaled_bits, w.scale_frac)?;
        self.row_scale(&format!("{name}_raw"), x, r, 1, w.scaled_bits)
    }

    /// The truncated rows, or the rows as they are where the boundary is merged.
    fn normalised(&mut self, name: &str, y: EdgeId, boundary: Boundary) -> Result<EdgeId, SpecError> {
        if self.merged(boundary) {
            return Ok(y);
        }
        self.truncate(name, y, hidden_log2(self.spec), self.spec.precision.hidden_frac)
    }

    /// Pooling, the dense layers; returns the client's pooling input and the edge that is opened.
    fn head(&mut self, hidden: EdgeId) -> Result<(Option<EdgeId>, EdgeId), SpecError> {
        let spec = self.spec;
        let f = spec.precision.hidden_frac;
        let (mut pool, mut x, mut first_row) = (None, hidden, spec.pooling == Pooling::First);
        if spec.pooling == Pooling::Mean {
            let merged = self.merged(Boundary::Pool);
            let u_frac = self.frac(hidden) + POOL_FRAC;
            let m = self.edge("pool_weights", 1, self.tokens, POOL_FRAC + 2, POOL_FRAC)?;
            let u = self.edge("pool_raw", 1, spec.hidden, signed_bits(hidden_log2(spec), u_frac), u_frac)?;
            let wide = merged || self.merged(Boundary::Hidden);
            self.limit(u, if wide { MERGED_RING_LIMIT } else { PRODUCT_RING_LIMIT })?;
            let op = Op::Product { left: m, right: hidden, heads: 1, transpose_right: false, mask: None };
            self.push("pool_raw", op, u);
            x = if merged { u } else { self.truncate("pool", u, hidden_log2(spec), f)? };
            pool = Some(m);
        }
        // After an identity the inputs are as large as the layer before makes them.
        let mut in_log2 = hidden_log2(spec);
        for (i, dense) in spec.dense.iter().enumerate() {
            let last = i + 1 == spec.dense.len();
            let name = format!("dense{i}");
            let shape = (dense.features, dense.out_log2, dense.weight_frac);
            let in_bits = signed_bits(in_log2, self.frac(x));
            self.widen(x, in_bits);
            let raw = self.linear(&format!("{name}_raw"), WeightId::Dense(i), vec![x], first_row, shape)?;
            first_row = false;
            // As wide as its input: the row is opened, and nothing is gained by a ring of its own.
            self.widen(raw, in_bits);
            in_log2 = hidden_log2(spec);
            x = match dense.activation {
                DenseActivation::Tanh => {
                    let table = TanhTable {
                        in_frac: self.frac(raw),
                        out_frac: f,
                        range_log2: 2,
                        error_ppm: spec.precision.tanh_error_ppm,
                    };
                    self.garbled(&name, raw, Function::Tanh(table), signed_bits(0, f), f)?
                }
                DenseActivation::Identity => {
                    in_log2 = dense.out_log2;
                    if last || self.merged(Boundary::Dense) {
                        raw
                    } else {
                        self.truncate(&name, raw, dense.out_log2, f)?
                    }
                }
            };
        }
        Ok((pool, x))
    }

    fn power(
        &self,
        power: RowPower,
        numerator: f64,
        (in_frac, out_frac): (u32, u32),
        min_log2: u32,
        max_log2: u32,
    ) -> Result<Function, SpecError> {
        let error_ppm = self.spec.precision.row_error_ppm;
        let table = PowerTable::new(power, numerator, in_frac, out_frac, min_log2, max_log2, error_ppm).ok_or(
            SpecError::Range {
                what: "position of a row value's leading bit",
                value: max_log2 as i64,
                range: "0 to 63",
            },
        )?;
        Ok(Function::Power { table, numerator, in_frac, out_frac })
    }

    fn frac(&self, id: EdgeId) -> u32 {
        self.edges[id.0].frac
    }

    fn qualified(&self, name: &str) -> String {
        match self.layer {
            Some(i) => format!("layer{i}.{name}"),
            None => name.to_string(),
        }
    }

    /// An edge whose ring has at least `bits` bits.
    fn edge(&mut self, name: &str, rows: usize, cols: usize, bits: u32, frac: u32) -> Result<EdgeId, SpecError> {
        let name = self.qualified(name);
        if bits > RING_LIMIT {
            return Err(SpecError::Ring { edge: name, bits, limit: RING_LIMIT });
        }
        self.needs.push(Need { name: name.clone(), bits, limit: RING_LIMIT });
        self.edges.push(Edge { name, rows, cols, ring: UNKNOWN, frac });
        Ok(EdgeId(self.edges.len() - 1))
    }

    fn widen(&mut self, id: EdgeId, bits: u32) {
        let need = &mut self.needs[id.0];
        need.bits = need.bits.max(bits);
    }

    fn limit(&mut self, id: EdgeId, limit: u32) -> Result<(), SpecError> {
        let need = &mut self.needs[id.0];
        need.limit = limit;
        if need.bits > limit {
            return Err(SpecError::Ring { edge: need.name.clone(), bits: need.bits, limit });
        }
        Ok(())
    }

    fn push(&mut self, name: &str, op: Op, output: EdgeId) {
        let name = self.qualified(name);
        self.nodes.push(Node { name, layer: self.layer, op, output });
    }

    /// A linear map of inputs at one number of fraction bits to `cols` features of magnitude `2^log2`.
    fn linear(
        &mut self,
        name: &str,
        weights: WeightId,
        inputs: Vec<EdgeId>,
        first_row: bool,
        (cols, log2, weight_frac): (usize, i32, u32),
    ) -> Result<EdgeId, SpecError> {
        let (in_rows, in_frac) = inputs.first().map_or((0, 0), |&e| (self.edges[e.0].rows, self.frac(e)));
        let rows = if first_row { 1 } else { in_rows };
        let frac = in_frac + weight_frac;
        let output = self.edge(name, rows, cols, signed_bits(log2, frac), frac)?;
        // A bias is rounded for truncated inputs, or, after a one-hot input, for the table's own scale.
        let bias_shift = in_frac.saturating_sub(self.spec.precision.hidden_frac);
        self.push(name, Op::Linear { weights, inputs, first_row, bias_shift }, output);
        Ok(output)
    }

    fn garbled(
        &mut self,
        name: &str,
        input: EdgeId,
        function: Function,
        bits: u32,
        frac: u32,
    ) -> Result<EdgeId, SpecError> {
        let (rows, cols) = (self.edges[input.0].rows, self.edges[input.0].cols);
        let output = self.edge(name, rows, cols, bits, frac)?;
        self.push(name, Op::Garbled { function, input }, output);
        Ok(output)
    }

    /// Values of magnitude `2^log2` at `frac` fraction bits, never more than they had.
    fn truncate(&mut self, name: &str, input: EdgeId, log2: i32, frac: u32) -> Result<EdgeId, SpecError> {
        let frac = frac.min(self.frac(input));
        let shift = self.frac(input) - frac;
        self.garbled(name, input, Function::Truncate { shift }, signed_bits(log2, frac), frac)
    }

    fn row_scale(
        &mut self,
        name: &str,
        input: EdgeId,
        scale: EdgeId,
        heads: usize,
        bits: u32,
    ) -> Result<EdgeId, SpecError> {
        let (rows, cols) = (self.edges[input.0].rows, self.edges[input.0].cols);
        let output = self.edge(name, rows, cols, bits, self.frac(input) + self.frac(scale))?;
        self.push(name, Op::RowScale { input, scale, heads }, output);
        Ok(output)
    }

    /// The edges at the largest of their numbers of fraction bits: a linear map takes all its inputs at one.
    fn aligned(&mut self, edges: &[(&str, EdgeId)]) -> Result<Vec<EdgeId>, SpecError> {
        let frac = edges.iter().map(|&(_, e)| self.frac(e)).max().unwrap_or(0);
        let mut out = Vec::with_capacity(edges.len());
        for &(name, input) in edges {
            let bits = frac - self.frac(input);
            if bits == 0 {
                out.push(input);
                continue;
            }
            let (rows, cols) = (self.edges[input.0].rows, self.edges[input.0].cols);
            let output = self.edge(name, rows, cols, self.needs[input.0].bits + bits, frac)?;
            self.push(name, Op::ShiftLeft { input, bits }, output);
            out.push(output);
        }
        Ok(out)
    }
}
