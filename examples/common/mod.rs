//! The options of these examples.

use heliostat::engine::Engine;

/// Opens what `--backend auto|cpu|gpu|dual` and `--adapter NAME|INDEX` among `args` ask for, and says what that is.
pub fn engine(mut args: impl Iterator<Item = String>) -> Result<Engine, Box<dyn std::error::Error>> {
    let mut builder = Engine::builder();
    while let Some(option) = args.next() {
        let value = args.next().ok_or(format!("{option} needs a value"))?;
        builder = match option.as_str() {
            "--backend" => builder.backend(value.parse()?),
            "--adapter" => builder.adapter(value),
            _ => return Err(format!("no option {option}: there are --backend and --adapter").into()),
        };
    }
    let engine = builder.open()?;
    println!("{}: {}", engine.info().kind, engine.reason());
    Ok(engine)
}
