//! The way in for a stream: its request is read, its session and role checked, its disk looked up, and the client sent on where this host does
//! not see that (xapi.md 6.1).
//!
//! Called by `serve` with a connection that is the stream's alone from then on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::super::schema::Type;
use super::super::{Pool, db::Db, placement, session, task};
use super::head::{Head, Kind};
use super::{End, Transfer, page, write};
use crate::xapi::wire::{Failure, Ref};

/// Request line and headers together (xapi.md 1.1).
const HEADERS: usize = 1024;
/// A peer may still be sending when it is answered; what comes within this time is read, so that the answer is not lost with a reset.
const DRAINED: Duration = Duration::from_millis(500);
const CHALLENGE: &str = "WWW-Authenticate: Basic realm=\"XenServer\"\r\n";

/// Serves one request whose first bytes were read, and closes the connection, as the handlers of streams do (xapi.md 6.1).
pub async fn serve<S>(pool: Arc<Pool>, at: SocketAddr, stream: S, begun: Vec<u8>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut bytes = begun;
    let rest = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break bytes.split_off(end + 4);
        }
        if bytes.len() > HEADERS || !matches!(reader.read_buf(&mut bytes).await, Ok(1..)) {
            break Vec::new();
        }
    };
    let head = String::from_utf8(bytes).ok();
    let whole = head.as_ref().is_some_and(|text| text.ends_with("\r\n\r\n"));
    let mut body = std::io::Cursor::new(rest).chain(reader);
    let end = match head {
        Some(text) if text.len() > HEADERS => {
            write(&mut writer, &page("431 Request Header Fields Too Large", "", "")).await
        }
        Some(text) if whole => match Head::parse(&text) {
            Some(head) => let_in(&pool, at, head, &mut body, &mut writer).await,
            None => write(&mut writer, &page("500 Internal Server Error", "", "")).await,
        },
        Some(_) | None => End::Cut,
    };
    if end == End::Close {
        // A peer that is gone needs no farewell.
        let _ = writer.shutdown().await;
        let _ = tokio::time::timeout(DRAINED, tokio::io::copy(&mut body, &mut tokio::io::sink())).await;
    }
}

/// Session and role, then disk and place; what does not get past them is no call yet.
async fn let_in(
    pool: &Arc<Pool>,
    at: SocketAddr,
    head: Head,
    body: &mut (impl AsyncRead + Unpin),
    out: &mut (impl AsyncWrite + Unpin),
) -> End {
    let given = head.param("task_id").map(|task| Ref(task.to_owned()));
    let fail = |failure: Failure| {
        if let Some(task) = &given {
            task::finish(pool, task, &Err(failure), &Type::Void);
        }
    };
    if pool.faults.booting().is_some() {
        return write(out, &page("500 Internal Server Error", "", "")).await;
    }
    let Some(host) = host_at(&pool.db(), at) else { return End::Cut };
    let (session, visitor) = match authenticate(pool, &head, &host).await {
        Some(known) => known,
        None => {
            fail(Failure::new::<String>("SESSION_AUTHENTICATION_FAILED", []));
            return write(out, &page("401 Unauthorised", CHALLENGE, "")).await;
        }
    };
    let end = match session::check(pool, &session, head.kind.permission(), "vm-admin") {
        Err(refused) => {
            fail(refused);
            write(out, &page("403 Forbidden", "", "")).await
        }
        Ok(()) => place(pool, at, head, &host, &session, (body, out)).await,
    };
    if visitor {
        pool.db().delete("session", &session);
    }
    end
}

/// A session that is there, or one for the length of this request (xapi.md 2.2).
async fn authenticate(pool: &Pool, head: &Head, host: &Ref) -> Option<(Ref, bool)> {
    if let Some(session) = head.param("session_id") {
        let session = Ref(session.to_owned());
        return pool.db().find("session", &session).map(|_| (session.clone(), false));
    }
    let (user, password) = head.basic.as_ref()?;
    let made = session::login(pool, host, user, password, "stream").await.ok()?;
    Some((Ref(made.as_str()?.to_owned()), true))
}

fn host_at(db: &Db, at: SocketAddr) -> Option<Ref> {
    let address = json!(at.ip().to_string());
    db.all("host").find(|(_, row)| row.get("address") == Some(&address)).map(|(host, _)| host.clone())
}

/// The disk that is named, by reference or uuid.
fn named(db: &Db, head: &Head) -> Option<Ref> {
    let vdi = head.param("vdi")?;
    let by_ref = Ref(vdi.to_owned());
    if db.find("VDI", &by_ref).is_some() { Some(by_ref) } else { db.by_uuid("VDI", vdi).ok() }
}

/// The repository that an import without a disk names.
fn repository(db: &Db, head: &Head) -> Option<Ref> {
    let by_ref = head.param("sr_id").map(|sr| Ref(sr.to_owned())).filter(|sr| db.find("SR", sr).is_some());
    by_ref.or_else(|| db.by_uuid("SR", head.param("sr_uuid")?).ok())
}

/// Looks the disk up, and sends the client to a host that sees it.
async fn place(
    pool: &Arc<Pool>,
    at: SocketAddr,
    head: Head,
    host: &Ref,
    session: &Ref,
    (body, out): (&mut (impl AsyncRead + Unpin), &mut (impl AsyncWrite + Unpin)),
) -> End {
    let found = {
        let db = pool.db();
        let vdi = named(&db, &head);
        let sr = match &vdi {
            Some(vdi) => db.link_to("VDI", vdi, "SR").ok(),
            None if head.kind == Kind::Import && head.param("vdi").is_none() => repository(&db, &head),
            None => None,
        };
        sr.map(|sr| {
            let mut seers: Vec<Ref> =
                db.all("host").map(|(h, _)| h.clone()).filter(|h| placement::sees(&db, h, &sr)).collect();
            seers.sort_by_key(|h| h != host);
            let seer = seers.into_iter().next();
            let address = seer.as_ref().and_then(|h| db.text("host", h, "address").ok().map(str::to_owned));
            (vdi, sr, seer, address.unwrap_or_default())
        })
    };
    // Nobody tells the task: the daemon gives up before it looks at it.
    let Some((vdi, sr, seer, address)) = found else {
        return write(out, &page("500 Internal Server Error", "", "HANDLE_INVALID: [ VDI ]")).await;
    };
    match seer {
        Some(seer) if seer == *host => {
            let transfer = Transfer {
                pool: Arc::clone(pool),
                head,
                vdi,
                sr,
                host: host.clone(),
                session: session.clone(),
                task: Ref::null(),
            };
            transfer.begin(body, out).await
        }
        // The task stays pending for the other host (xapi.md 6.1). Real hosts are always on 443; here a port must be said.
        Some(_) => {
            let address = if address.contains(':') { format!("[{address}]") } else { address };
            let port = if at.port() == 443 { String::new() } else { format!(":{}", at.port()) };
            let to = format!("Location: https://{address}{port}{}\r\n", head.target);
            write(out, &page("302 Found", &to, "")).await
        }
        None => {
            if let Some(task) = head.param("task_id") {
                let failure = Failure::new("SR_HAS_NO_PBDS", [sr.as_str()]);
                task::finish(pool, &Ref(task.to_owned()), &Err(failure), &Type::Void);
            }
            write(out, &page("500 Internal Server Error", "", "SR_HAS_NO_PBDS")).await
        }
    }
}
