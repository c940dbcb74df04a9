//! `synth`: a model folder with random weights.

use heliostat::{
    model::{Synthetic, synthesise},
    report::print,
};

use crate::{args::Synth, failure::Failure, output};

/// `heliostat synth`.
pub fn synth(args: Synth) -> Result<(), Failure> {
    let layers = args.layers.map(usize::from);
    let Synthetic { parameters, bytes } = synthesise(&args.out, args.shape, layers, args.seed)?;
    if args.json {
        return output::json(&serde_json::json!({ "parameters": parameters, "bytes": bytes }));
    }
    output::line(&format!(
        "{}: {:.1} million random parameters, {}; answers of such a model mean nothing, its costs do",
        args.out.display(),
        parameters as f64 / 1e6,
        print::bytes(bytes),
    ))
}
