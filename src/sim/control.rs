//! The instrument's panel: what tests do by the in-process handle, done from outside by HTTP.
//!
//! `POST /` with one command as JSON; the answer is JSON: `{"ok": …}` or `{"error": "…"}` with status 400. Plain HTTP on an address of its
//! own, for loopback only: whoever reaches it owns the pool. Apart from the daemon, it works while that is down.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Pool,
    faults::{Effect, Fault, Target},
    restart,
    schema::{Record, schema},
    script::{self, Script},
};
use crate::xapi::wire::{Failure, Ref};

/// A command, named by `do`. Objects are named by class and uuid; times are seconds of the pool's clock.
#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Scripts for guests, from their next boot on; see `script`.
    Guests {
        scripts: Vec<Script>,
    },
    /// Every guest is a plain system again.
    ClearGuests,
    /// The daemon dies and comes back.
    Restart {
        clean: bool,
    },
    /// The daemon dies, and every connection with it, until `start`.
    Stop {
        clean: bool,
    },
    Start,
    /// Another host becomes coordinator.
    Coordinator {
        host: String,
    },
    /// A fault of the wire, always or so many times.
    Fault {
        target: On,
        effect: What,
        times: Option<u32>,
    },
    ClearFaults,
    /// Every call is refused before dispatch with this code and these parameters; no code ends it.
    Booting {
        failure: Vec<String>,
    },
    /// Stages whose label begins so wait.
    Hold {
        prefix: String,
    },
    Unhold {
        prefix: String,
    },
    /// The stages held now.
    Waiting,
    Release {
        id: u64,
    },
    ReleaseAll,
    /// Overwrites fields of a row, whatever a client might do: a disabled host, an enumeration's odd value.
    Set {
        class: String,
        uuid: String,
        fields: Record,
    },
    /// Makes a row; says its reference.
    Create {
        class: String,
        fields: Record,
    },
    /// Takes a row away: a collected task, a session, a disk's row.
    Delete {
        class: String,
        uuid: String,
    },
    /// Every session ends.
    EvictSessions,
    /// The control domain holds a disk, as after an export that died.
    LeakVbd {
        vdi: String,
    },
    /// The source of a clone that is under way at the next restart stays paused.
    LeavePaused,
    /// Disks stay in use so long after a halt.
    Linger {
        seconds: f64,
    },
    /// SHA-256 of a disk's content.
    Digest {
        vdi: String,
    },
    /// The calls seen so far, and how often each was made.
    Log,
    ResetLog,
}

/// Which calls a fault meets; see [`Target`].
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum On {
    Number(u64),
    Method(String),
    Random { per_mille: u16, seed: u64 },
}

/// What happens to them; see [`Effect`].
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum What {
    Drop,
    CutReply,
    TruncateReply,
    /// Hundredths of a stream's body.
    CutBody(u8),
    /// Seconds.
    ExecuteLate(f64),
    /// Code and parameters.
    Refuse(Vec<String>),
    /// Code and parameters.
    FailTask(Vec<String>),
}

#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{0}")]
    Pool(#[from] Failure),
    #[error("there is no class {0}")]
    Class(String),
    #[error("{0} is no number of seconds")]
    Seconds(f64),
    #[error("a failure needs a code")]
    Code,
}

/// Listens until the world ends. Says the address, for port 0.
///
/// # Errors
/// Where the address cannot be had.
pub async fn listen(pool: &Arc<Pool>, at: SocketAddr) -> std::io::Result<SocketAddr> {
    let socket = tokio::net::TcpListener::bind(at).await?;
    let address = socket.local_addr()?;
    let panel = Router::new().route("/", post(answer)).with_state(Arc::clone(pool));
    pool.world.spawn(async move {
        // A panel that fails is noticed by whoever turns its knobs.
        let _ = axum::serve(socket, panel).await;
    });
    Ok(address)
}

async fn answer(State(pool): State<Arc<Pool>>, body: String) -> (StatusCode, Json<Value>) {
    let refused = |text: String| (StatusCode::BAD_REQUEST, Json(json!({ "error": text })));
    match serde_json::from_str(&body) {
        Err(mistake) => refused(format!("no such command: {mistake}")),
        Ok(command) => match carry_out(&pool, command).await {
            Ok(value) => (StatusCode::OK, Json(json!({ "ok": value }))),
            Err(why) => refused(why.to_string()),
        },
    }
}

/// Carries a command out.
///
/// # Errors
/// Where it names something that is not there, or no number.
pub async fn carry_out(pool: &Arc<Pool>, command: Command) -> Result<Value, Refused> {
    match command {
        Command::Guests { scripts } => {
            scripts.into_iter().for_each(|s| script::install(&pool.world.guests, s));
            return Ok(Value::Null);
        }
        Command::ClearGuests => pool.world.guests.clear(),
        Command::Restart { clean } => restart::restart(pool, clean).await,
        Command::Stop { clean } => restart::stop(pool, clean).await,
        Command::Start => restart::start(pool),
        Command::Coordinator { host } => restart::change_coordinator(pool, &host).await?,
        Command::Fault { target, effect, times } => {
            pool.faults.add(Fault { target: target.into(), effect: effect.parse()?, times });
        }
        Command::ClearFaults => pool.faults.clear(),
        Command::Booting { failure } => pool.faults.set_booting(Failure::from_list(&failure)),
        Command::Hold { prefix } => pool.clock.hold(&prefix),
        Command::Unhold { prefix } => pool.clock.unhold(&prefix),
        Command::Waiting => {
            let held = pool.clock.waiting();
            return Ok(held.iter().map(|w| json!({"id": w.id, "label": w.label})).collect());
        }
        Command::Release { id } => return Ok(json!(pool.clock.release(id))),
        Command::ReleaseAll => return Ok(json!(pool.clock.release_all())),
        Command::Set { class, uuid, fields } => {
            let (class, row) = find(pool, &class, &uuid)?;
            pool.db().update(class, &row, |old| old.extend(fields))?;
        }
        Command::Create { class, fields } => {
            let class = known(&class)?;
            let made = pool.db().create(class, fields.iter().map(|(k, v)| (k.as_str(), v.clone())));
            return Ok(json!(made));
        }
        Command::Delete { class, uuid } => {
            let (class, row) = find(pool, &class, &uuid)?;
            pool.db().delete(class, &row);
        }
        Command::EvictSessions => {
            let mut db = pool.db();
            let all: Vec<Ref> = db.all("session").map(|(r, _)| r.clone()).collect();
            all.iter().for_each(|session| db.delete("session", session));
        }
        Command::LeakVbd { vdi } => {
            let (_, row) = find(pool, "VDI", &vdi)?;
            return Ok(json!(pool.leak_vbd(&row)));
        }
        Command::LeavePaused => pool.world.redos.leave_paused(),
        Command::Linger { seconds: given } => pool.world.set_linger(seconds(given)?),
        Command::Digest { vdi } => return Ok(json!(pool.digest(&vdi))),
        Command::Log => return Ok(log(pool)),
        Command::ResetLog => pool.log.reset(),
    }
    Ok(Value::Null)
}

fn known(class: &str) -> Result<&'static str, Refused> {
    schema().class(class).map(|c| c.name.as_str()).ok_or_else(|| Refused::Class(class.to_owned()))
}

fn find(pool: &Pool, class: &str, uuid: &str) -> Result<(&'static str, Ref), Refused> {
    let class = known(class)?;
    Ok((class, pool.db().by_uuid(class, uuid)?))
}

fn seconds(given: f64) -> Result<Duration, Refused> {
    Duration::try_from_secs_f64(given).map_err(|_| Refused::Seconds(given))
}

fn log(pool: &Pool) -> Value {
    let entries = pool.log.entries();
    let shown = entries.iter().map(|e| {
        json!({"number": e.number, "method": e.method, "params": e.params, "fault": e.fault.as_ref().map(|f| format!("{f:?}"))})
    });
    json!({"counts": pool.log.counts(), "calls": shown.collect::<Vec<_>>()})
}

impl From<On> for Target {
    fn from(on: On) -> Self {
        match on {
            On::Number(n) => Self::Number(n),
            On::Method(name) => Self::Method(name),
            On::Random { per_mille, seed } => Self::Random { per_mille, seed },
        }
    }
}

impl What {
    fn parse(self) -> Result<Effect, Refused> {
        Ok(match self {
            Self::Drop => Effect::Drop,
            Self::CutReply => Effect::CutReply,
            Self::TruncateReply => Effect::TruncateReply,
            Self::CutBody(percent) => Effect::CutBody(percent),
            Self::ExecuteLate(after) => Effect::ExecuteLate(seconds(after)?),
            Self::Refuse(list) => Effect::Refuse(Failure::from_list(&list).ok_or(Refused::Code)?),
            Self::FailTask(list) => Effect::FailTask(Failure::from_list(&list).ok_or(Refused::Code)?),
        })
    }
}
