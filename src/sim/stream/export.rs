//! `GET /export_raw_vdi`: a disk's bytes onto a connection, until it closes (xapi.md 6.2).

use serde_json::json;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::super::{Answer, disk::BLOCK, storage::backend};
use super::import::{Pace, hold, place};
use super::{Manner, Reply, Transfer, broken, inner, write};
use crate::xapi::wire::{Failure, Ref};

/// Sends every byte of a disk, zeros included. What keeps it from that is told inside the body, unless nobody can read it any more.
pub async fn run(transfer: &Transfer, out: &mut (impl AsyncWrite + Unpin), manner: Manner) -> Answer {
    let vdi = transfer.vdi.clone().unwrap_or_default();
    let sent = match hold(transfer, &vdi, false).await {
        Err(failure) => Err(failure),
        Ok(held) => {
            let sent = send(transfer, &vdi, out, manner).await;
            held.release(&transfer.pool);
            sent
        }
    };
    if let Err(failure) = &sent
        && manner.reply == Reply::Whole
        && *failure != broken()
    {
        write(out, &inner(failure)).await;
    }
    sent.map(|()| json!(""))
}

async fn send(
    transfer: &Transfer,
    vdi: &Ref,
    out: &mut (impl AsyncWrite + Unpin),
    manner: Manner,
) -> Result<(), Failure> {
    let (uuid, size) = place(&transfer.pool, vdi)?;
    let mut pace = Pace::new("export_raw_vdi", &uuid, size, manner);
    let limit = if manner.reply == Reply::Lost { 0 } else { pace.limit() };
    let mut at = 0;
    while at < size {
        let wanted = BLOCK.min(size - at).min(limit - at);
        let length = usize::try_from(wanted).unwrap_or_default();
        if length == 0 {
            return Err(broken());
        }
        pace.step(transfer, wanted).await;
        let bytes = transfer.pool.world.disks().read_at(&uuid, at, length).map_err(|e| backend(&e))?;
        out.write_all(&bytes).await.map_err(|_| broken())?;
        at += wanted;
    }
    out.flush().await.map_err(|_| broken())
}
