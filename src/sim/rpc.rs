//! What every call passes before it is carried out, in the daemon's order, whatever the wire's dialect.
//!
//! Called by [`super::http`] with a method and its parameters; hands a [`Call`] to [`dispatch`], inside a task where it is an action. The one
//! place where calls are numbered, logged and struck by faults.

use std::sync::Arc;

use serde_json::{Value, json};

use super::faults::{Effect, Entry};
use super::schema::{Message, Type, schema};
use super::{Answer, Call, Pool, dispatch, session, task};
use crate::xapi::wire::{Failure, Ref};

/// A call as it came in.
pub struct Request {
    pub method: String,
    pub params: Vec<Value>,
    /// `X-Http-Other-Config-<name>` headers: lower-cased name and value, the first of equals (xapi.md 14, Tags on tasks).
    pub tags: Vec<(String, String)>,
    /// The address of the host that was asked.
    pub address: String,
}

/// What the connection shall do.
pub enum Verdict {
    Reply(Answer, Type),
    /// A failure from before dispatch, which has a shape of its own (xapi.md 1.2).
    Early(Failure),
    /// Break off in mid-body.
    Truncate(Answer, Type),
    /// Die without a word.
    Cut,
}

struct Target {
    class: &'static str,
    message: &'static Message,
    asynchronous: bool,
}

/// Every method that `system.listMethods` names.
pub fn methods() -> Value {
    let of = |class: &'static super::schema::Class| {
        class.messages.values().filter(|m| !m.removed).map(move |m| format!("{}.{}", class.name, m.name))
    };
    let all = schema().classes.values().flat_map(of);
    all.chain(["system.listMethods".to_owned()]).map(Value::from).collect()
}

/// Takes a call through checks, log, faults and dispatch.
pub async fn handle(pool: &Arc<Pool>, request: Request) -> Verdict {
    if let Some(failure) = pool.faults.booting() {
        return Verdict::Early(failure);
    }
    if request.method == "system.listMethods" {
        pool.log.count(&request.method);
        let kind = Type::Set(Box::new(Type::String));
        return Verdict::Reply(Ok(methods()), kind);
    }
    match prepare(pool, &request) {
        Ok(Prepared::Login) => {
            pool.log.count(&request.method);
            Verdict::Reply(login(pool, &request).await, Type::String)
        }
        Ok(Prepared::Call(target, call)) => carry_out(pool, request, &target, call).await,
        Err(failure) => Verdict::Reply(Err(failure), Type::Void),
    }
}

enum Prepared {
    Login,
    Call(Target, Call),
}

/// The checks in their order: method, arity, host, session, role, types.
fn prepare(pool: &Pool, request: &Request) -> Result<Prepared, Failure> {
    let target = find(&request.method)?;
    let (class, message) = (target.class, target.message);
    let permission = format!("{class}.{}", message.name);
    if message.removed {
        return Err(Failure::new::<String>("MESSAGE_REMOVED", []));
    }
    if target.asynchronous && !message.has_async(class) {
        return Err(Failure::new("Fault", [format!("There is no async mode for this operation ({permission})")]));
    }
    let given = request.params.len();
    let (session, params) = match request.params.split_first() {
        Some((first, rest)) if !message.sessionless => (first.as_str().unwrap_or_default(), rest),
        _ => ("", request.params.as_slice()),
    };
    let least = message.params.iter().filter(|p| p.default.is_none()).count();
    let counted = if message.sessionless { given } else { given.wrapping_sub(1) };
    if counted < least || counted > message.params.len() {
        let got = if message.sessionless { given.to_string() } else { (given as i128 - 1).to_string() };
        let expected = message.params.len().to_string();
        return Err(Failure::new("MESSAGE_PARAMETER_COUNT_MISMATCH", [permission, expected, got]));
    }
    let host = asked_host(pool, &request.address)?;
    if message.sessionless {
        return match message.name.as_str() {
            "login_with_password" => Ok(Prepared::Login),
            _ => Err(Failure::new("NOT_IMPLEMENTED", [permission])),
        };
    }
    let session = Ref(session.to_owned());
    session::check(pool, &session, &permission, needed(message, params))?;
    let args = message.params.iter().enumerate().map(|(i, p)| match (params.get(i), &p.default) {
        (Some(value), _) => p.kind.accept(value, &p.name),
        (None, default) => Ok(default.clone().unwrap_or(Value::Null)),
    });
    let args = args.collect::<Result<Vec<_>, _>>()?;
    let call = Call { class, message: &target.message.name, args, session, task: Ref::null(), host };
    Ok(Prepared::Call(target, call))
}

/// Folders and custom fields are open to operators, though the map that holds them is not (xapi.md 2.3).
fn needed<'a>(message: &'a Message, params: &[Value]) -> &'a str {
    let key = params.get(1).and_then(Value::as_str).unwrap_or_default();
    let open = key == "folder" || key.starts_with("XenCenter.CustomFields.");
    match message.name.as_str() {
        "add_to_other_config" | "remove_from_other_config" if open => "vm-operator",
        _ => &message.role,
    }
}

/// `Class.method`, `Class_method` for synchronous calls, `Async.Class.method` (xapi.md 1.4). An unknown one is named without its
/// `Async.` (xapi.md 14).
fn find(method: &str) -> Result<Target, Failure> {
    let (asynchronous, plain) = match method.strip_prefix("Async.") {
        Some(plain) => (true, plain),
        None => (false, method),
    };
    let of = |class: &str, message: &str| {
        let class = schema().class(class)?;
        let message = class.messages.get(message)?;
        Some(Target { class: &class.name, message, asynchronous })
    };
    let dotted = plain.split_once('.').and_then(|(class, message)| of(class, message));
    let underscored = || plain.match_indices('_').find_map(|(i, _)| of(plain.get(..i)?, plain.get(i + 1..)?));
    let found = dotted.or_else(|| if asynchronous { None } else { underscored() });
    found.ok_or_else(|| Failure::new("MESSAGE_METHOD_UNKNOWN", [plain]))
}

/// Only the coordinator answers; every other host names its address (xapi.md 2.1).
fn asked_host(pool: &Pool, address: &str) -> Result<Ref, Failure> {
    let db = pool.db();
    let (_, row) = db.all("pool").next().ok_or_else(|| Failure::new::<String>("HOST_STILL_BOOTING", []))?;
    let master = Ref(row.get("master").and_then(Value::as_str).unwrap_or_default().to_owned());
    let at = db.text("host", &master, "address")?;
    if at == address { Ok(master) } else { Err(Failure::new("HOST_IS_SLAVE", [at])) }
}

async fn login(pool: &Pool, request: &Request) -> Answer {
    let text = |i: usize| request.params.get(i).and_then(Value::as_str).unwrap_or_default();
    let host = asked_host(pool, &request.address)?;
    session::login(pool, &host, text(0), text(1), text(3)).await
}

/// Calls that change something: those are numbered. Sessions and events are the client's own affair.
fn changes(class: &str, message: &str) -> bool {
    let looks = ["get_", "assert_"].iter().any(|p| message.starts_with(p)) || message == "list_methods";
    !looks && !matches!(class, "session" | "event")
}

async fn carry_out(pool: &Arc<Pool>, request: Request, target: &Target, call: Call) -> Verdict {
    let Request { method, tags, .. } = request;
    let kind = target.message.result.clone();
    pool.log.count(&method);
    let number = changes(call.class, call.message).then(|| pool.log.take_number());
    let fault = pool.faults.strike(&method, number);
    let params = call.args.clone();
    let (task, outcome) = (Ref::null(), None);
    pool.log.push(Entry {
        number,
        method: method.clone(),
        params,
        tags: tags.clone(),
        fault: fault.clone(),
        task,
        outcome,
    });
    let asynchronous = target.asynchronous;
    let mut run =
        Run { pool: Arc::clone(pool), number, method, tags, call, asynchronous, kind: kind.clone(), fails: None };
    let run_has_task = target.message.has_async(run.call.class);
    match fault {
        None => answer(pool, run, run_has_task).await.map_or(Verdict::Cut, |(a, k)| Verdict::Reply(a, k)),
        Some(Effect::TruncateReply) => {
            answer(pool, run, run_has_task).await.map_or(Verdict::Cut, |(a, k)| Verdict::Truncate(a, k))
        }
        Some(Effect::Drop | Effect::CutBody(_)) => Verdict::Cut,
        Some(Effect::CutReply) => {
            answer(pool, run, run_has_task).await;
            Verdict::Cut
        }
        Some(Effect::ExecuteLate(after)) => {
            let late = Arc::clone(pool);
            pool.spawn(async move {
                late.clock.sleep(after).await;
                answer(&late, run, run_has_task).await;
            });
            Verdict::Cut
        }
        Some(Effect::Refuse(failure)) => Verdict::Reply(Err(failure), Type::Void),
        Some(Effect::FailTask(failure)) => {
            run.fails = Some(failure);
            answer(pool, run, run_has_task).await.map_or(Verdict::Cut, |(a, k)| Verdict::Reply(a, k))
        }
    }
}

struct Run {
    pool: Arc<Pool>,
    number: Option<u64>,
    method: String,
    tags: Vec<(String, String)>,
    call: Call,
    asynchronous: bool,
    kind: Type,
    /// What it comes to in place of being carried out.
    fails: Option<Failure>,
}

/// Runs a call to its answer, apart from the connection: it goes on when the caller hangs up (xapi.md 14). `None` where the
/// daemon died over it.
async fn answer(pool: &Arc<Pool>, run: Run, has_task: bool) -> Option<(Answer, Type)> {
    let Run { pool: inner, number, method, tags, mut call, asynchronous, kind, fails } = run;
    if has_task {
        call.task = task::begin(pool, &method, &tags, None);
    }
    let task = call.task.clone();
    let (reply, wait) = tokio::sync::oneshot::channel();
    let result = kind.clone();
    let ended = task.clone();
    pool.spawn(async move {
        let answer = match fails {
            Some(failure) => Err(failure),
            None => dispatch(&inner, &call).await,
        };
        if let Some(number) = number {
            inner.log.ended(number, &call.task, &answer);
        }
        if has_task {
            task::finish(&inner, &ended, &answer, &result);
        }
        if has_task && !asynchronous {
            inner.db().delete("task", &ended);
        }
        // Nobody waits for an asynchronous call, or for one whose caller hung up.
        let _ = reply.send(answer);
    });
    if asynchronous {
        return Some((Ok(json!(task)), Type::Ref("task".to_owned())));
    }
    wait.await.ok().map(|answer| (answer, kind))
}
