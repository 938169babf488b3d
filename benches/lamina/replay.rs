//! The baseline: one layer's calls as the pool logged them, sent again by a plain client, many lives at a time.
//!
//! Every reference that a recorded call gave is replaced by what the same call gives now. Left out are the log-in and the long poll, which
//! belong to no layer. The ends of tasks and machines are read off the simulator in process: that costs no call, as the long poll's events
//! cost the controller none.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use lamina::sim::Pool;
use lamina::sim::faults::Entry;
use lamina::sim::guest::{Match, program};
use lamina::sim::power::Exit;
use lamina::xapi::wire::Ref;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::common::hands::http;
use crate::common::rig::Rig;

/// As many calls are on their way at a time as the controller lets be.
const IN_FLIGHT: usize = 20;

struct Player {
    http: reqwest::Client,
    url: String,
    session: String,
    slots: Semaphore,
    pool: Arc<Pool>,
}

/// How long so many lives take.
pub async fn measure(rig: &Rig, recorded: &[Entry], lives: usize) -> Duration {
    let calls: Vec<_> = recorded.iter().filter(|e| !e.method.starts_with("event.")).collect();
    // The guest's part of a life needs no time either.
    rig.sim.pool.world.guests.clear();
    rig.sim.pool.add_guest(Match::default(), program(|_| async { Exit::Halt }));
    let mut player = Player {
        http: http(&rig.sim),
        url: format!("{}/jsonrpc", rig.sim.urls().remove(0)),
        session: String::new(),
        slots: Semaphore::new(IN_FLIGHT),
        pool: Arc::clone(&rig.sim.pool),
    };
    let session = player.send("session.login_with_password", &json!(["root", "secret", "1.0", "replay"]), &[]).await;
    player.session = session.expect("a session").as_str().unwrap_or_default().to_owned();
    let begun = Instant::now();
    join_all((0..lives).map(|_| player.live(&calls))).await;
    begun.elapsed()
}

impl Player {
    async fn live(&self, calls: &[&Entry]) {
        // Recorded reference → this life's.
        let mut now: HashMap<String, String> = HashMap::new();
        for call in calls {
            let mut params = json!(call.params).to_string();
            now.iter().for_each(|(then, now)| params = params.replace(then, now));
            let mut params: Vec<Value> = serde_json::from_str(&params).expect("as it was");
            params.insert(0, json!(self.session));
            let answer = self.send(&call.method, &json!(params), &call.tags).await;
            let outcome = call.outcome.clone().and_then(Result::ok);
            // Two lives may meet at the source that they share; the controller would have waited its turn.
            let (Ok(answer), Some(Value::String(then))) = (answer, outcome) else { continue };
            if call.method.starts_with("Async.") {
                let task = Ref(answer.as_str().unwrap_or_default().to_owned());
                let result = self.ended(&task).await;
                now.insert(call.task.to_string(), task.to_string());
                if then.starts_with("OpaqueRef:") {
                    now.insert(then, result);
                }
            } else if then.starts_with("OpaqueRef:") {
                now.insert(then, answer.as_str().unwrap_or_default().to_owned());
            }
            if call.method == "Async.VM.start" {
                let vm = Ref(params[1].as_str().unwrap_or_default().to_owned());
                self.halted(&vm).await;
            }
        }
    }

    async fn send(&self, method: &str, params: &Value, tags: &[(String, String)]) -> Result<Value, String> {
        let _slot = self.slots.acquire().await.expect("never closed");
        let mut request = self.http.post(&self.url);
        for (name, value) in tags {
            request = request.header(format!("X-Http-Other-Config-{name}"), value);
        }
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let reply: Value = request.json(&body).send().await.expect("a reply").json().await.expect("JSON");
        match reply.get("error") {
            None => Ok(reply["result"].clone()),
            Some(error) => Err(error.to_string()),
        }
    }

    /// Waits for a task's end, and says the reference that it came to, if any.
    async fn ended(&self, task: &Ref) -> String {
        self.until(|| {
            let db = self.pool.db();
            let ended = db.text("task", task, "status") != Ok("pending");
            ended.then(|| db.text("task", task, "result").unwrap_or_default().to_owned())
        })
        .await
        .replace("<value>", "")
        .replace("</value>", "")
    }

    async fn halted(&self, vm: &Ref) {
        self.until(|| (self.pool.db().text("VM", vm, "power_state") == Ok("Halted")).then_some(())).await;
    }

    async fn until<T>(&self, look: impl Fn() -> Option<T>) -> T {
        let mut changed = self.pool.db().watch();
        loop {
            if let Some(found) = look() {
                return found;
            }
            changed.changed().await.expect("the pool lives");
        }
    }
}
