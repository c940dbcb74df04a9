//! What is inside a box: everything of a party's correlation but the garbled tables.

use zeroize::Zeroizing;

use crate::{
    arith::codec::{CodecError, Reader, Writer},
    model::{EdgeId, Graph, NodeId},
    mpc::block::{Block, blocks_as_bytes, blocks_from_bytes},
    net::session::spool::TableChunk,
    protocol::{ClientCorrelation, CotPools, ProtocolError, ServerCorrelation, ServerExport, SessionId, TableStore},
};

/// Most entries of one kind in a file.
const MAX_ENTRIES: usize = 1 << 22;

/// The client's side: where its tables are, then its secrets.
pub(super) fn write_client(
    graph: &Graph,
    correlation: &ClientCorrelation,
    index: &[TableChunk],
) -> Result<Zeroizing<Vec<u8>>, ProtocolError> {
    let (shares, products, labels) = correlation.export(graph)?;
    let mut w = Writer::new();
    w.u64(index.len() as u64);
    for TableChunk { node, chunk, at, len, digest } in index {
        w.u32(node.0 as u32).u32(*chunk as u32).u64(*at).u64(*len as u64).raw(digest);
    }
    for (i, share) in shares.iter().enumerate() {
        w.packed("share", share, graph.edge(EdgeId(i)).ring.bits())?;
    }
    write_vectors(&mut w, &products);
    w.u64(labels.len() as u64);
    for ((node, chunk), blocks) in &labels {
        w.u32(node.0 as u32).u32(*chunk as u32).bytes(blocks_as_bytes(blocks));
    }
    correlation.with_pools(|pools| write_pools(&mut w, pools));
    Ok(Zeroizing::new(w.finish()))
}

/// The index of the tables, with which the client's payload begins.
pub(super) fn read_index(r: &mut Reader<'_>) -> Result<Vec<TableChunk>, CodecError> {
    let count = r.count("index", MAX_ENTRIES)?;
    (0..count)
        .map(|_| {
            Ok(TableChunk {
                node: NodeId(r.u32("node")? as usize),
                chunk: r.u32("chunk")? as usize,
                at: r.u64("at")?,
                len: r.u64("len")? as usize,
                digest: r.array("digest")?,
            })
        })
        .collect()
}

/// What follows the index.
pub(super) fn read_client(
    mut r: Reader<'_>,
    session: SessionId,
    graph: &Graph,
    tables: Box<dyn TableStore>,
) -> Result<ClientCorrelation, ProtocolError> {
    let shares = graph
        .edges
        .iter()
        .map(|e| r.packed("share", e.len(), e.ring.bits()))
        .collect::<Result<Vec<_>, CodecError>>()?;
    let products = read_vectors(&mut r)?;
    let count = r.count("labels", MAX_ENTRIES)?;
    let labels = (0..count)
        .map(|_| {
            let key = (NodeId(r.u32("node")? as usize), r.u32("chunk")? as usize);
            let blocks = blocks_from_bytes(r.bytes("labels")?).ok_or(CodecError::Invalid { what: "labels" })?;
            Ok((key, blocks))
        })
        .collect::<Result<Vec<_>, CodecError>>()?;
    let pools = read_pools(&mut r)?;
    r.finish()?;
    Ok(ClientCorrelation::restore(session, shares, products, labels, pools, tables))
}

/// The server's side.
pub(super) fn write_server(correlation: &ServerCorrelation) -> Zeroizing<Vec<u8>> {
    let export = correlation.export();
    let mut w = Writer::new();
    w.raw(&export.delta.to_bytes()).raw(&export.label_seed.to_bytes());
    write_vectors(&mut w, &export.linear);
    write_vectors(&mut w, &export.products);
    w.u64(export.masks.len() as u64);
    for (node, left, right) in &export.masks {
        w.u32(node.0 as u32);
        write_words(&mut w, left);
        write_words(&mut w, right);
    }
    w.u64(export.permute.len() as u64);
    for ((node, chunk), bits) in &export.permute {
        w.u32(node.0 as u32).u32(*chunk as u32).bytes(bits);
    }
    correlation.with_pools(|pools| write_pools(&mut w, pools));
    Zeroizing::new(w.finish())
}

/// Reads what [`write_server`] wrote.
pub(super) fn read_server(payload: &[u8], session: SessionId) -> Result<ServerCorrelation, ProtocolError> {
    let mut r = Reader::new("correlation", payload);
    let (delta, label_seed) = (Block::from_bytes(r.array("delta")?), Block::from_bytes(r.array("seed")?));
    let (linear, products) = (read_vectors(&mut r)?, read_vectors(&mut r)?);
    let count = r.count("masks", MAX_ENTRIES)?;
    let masks = (0..count)
        .map(|_| Ok((NodeId(r.u32("node")? as usize), read_words(&mut r)?, read_words(&mut r)?)))
        .collect::<Result<Vec<_>, CodecError>>()?;
    let count = r.count("permute bits", MAX_ENTRIES)?;
    let permute = (0..count)
        .map(|_| {
            let key = (NodeId(r.u32("node")? as usize), r.u32("chunk")? as usize);
            Ok((key, r.bytes("permute bits")?.to_vec()))
        })
        .collect::<Result<Vec<_>, CodecError>>()?;
    let pools = read_pools(&mut r)?;
    r.finish()?;
    let export = ServerExport { delta, label_seed, linear, products, masks, permute };
    Ok(ServerCorrelation::restore(session, export, pools))
}

fn write_words(w: &mut Writer, values: &[u64]) {
    w.u64(values.len() as u64);
    values.iter().for_each(|&v| {
        w.u64(v);
    });
}

fn read_words(r: &mut Reader<'_>) -> Result<Vec<u64>, CodecError> {
    let count = r.count("a vector", r.remaining() / 8)?;
    (0..count).map(|_| r.u64("a vector")).collect()
}

/// 0, or 1 and what is left of the COTs of both directions.
fn write_pools(w: &mut Writer, pools: Option<&CotPools>) {
    w.u8(u8::from(pools.is_some()));
    if let Some(CotPools { receives, sends }) = pools {
        w.raw(&sends.delta().to_bytes()).bytes(blocks_as_bytes(&sends.left())).bytes(blocks_as_bytes(&receives.left()));
    }
}

fn read_pools(r: &mut Reader<'_>) -> Result<Option<CotPools>, ProtocolError> {
    if r.u8("whether there are OTs")? == 0 {
        return Ok(None);
    }
    let delta = Block::from_bytes(r.array("delta")?);
    let mut blocks = || blocks_from_bytes(r.bytes("OTs")?).ok_or(CodecError::Invalid { what: "OTs" });
    Ok(Some(CotPools::restore(delta, blocks()?, blocks()?)?))
}

fn write_vectors(w: &mut Writer, vectors: &[(NodeId, Vec<u64>)]) {
    w.u64(vectors.len() as u64);
    for (node, values) in vectors {
        w.u32(node.0 as u32);
        write_words(w, values);
    }
}

fn read_vectors(r: &mut Reader<'_>) -> Result<Vec<(NodeId, Vec<u64>)>, CodecError> {
    let count = r.count("vectors", MAX_ENTRIES)?;
    (0..count).map(|_| Ok((NodeId(r.u32("node")? as usize), read_words(r)?))).collect()
}
