//! The reconcile of a layer: want, observe, decide, act, report.
//!
//! Called by the kube controller for every wake. One step a pass, and never a wait inside one: whatever takes long is a task on the
//! pool, and its event wakes us. But for a stream (`act/config.rs`).

use std::sync::Arc;
use std::sync::PoisonError;

use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};

use super::act::{self, act};
use super::audit;
use super::census::{Census, is_frozen};
use super::context::{ConnectorKey, Context, Guarded, connector_of};
use super::ended;
use super::link::wake_connector;
use super::live;
use super::observe::{Lens, Scene, observe};
use super::overdue;
use super::report as tell;
use super::site::{NoSite, Site, site};
use super::status::{self, Outcome};
use super::step_files;
use super::trouble;
use super::turns;
use super::write::{self, WriteError};
use crate::api::condition::{ConditionType, find};
use crate::api::reason::{Fault, Reason};
use crate::api::{FINALIZER, PlatformLayer};
use crate::domain::observed::{Making, Sight, Trouble};
use crate::domain::plan::{self, Next, Plan, Step};
use crate::domain::removal;
use crate::domain::want::{DeletionPolicy, Want};
use crate::xapi::view::View;

/// A pass that could not tell what it came to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the status of the layer was not written")]
    Status(#[source] WriteError),
    #[error("the layer was not read")]
    Read(#[source] kube::Error),
    #[error("this process does not lead any more")]
    NotLeading,
}

/// One pass. What somebody wrote while it lasted, or has yet to come by the watch (our own last word, too), wakes us: it is decided anew
/// then, and nothing needs to be told of this one.
pub async fn reconcile(stored: Arc<Guarded<PlatformLayer>>, ctx: Arc<Context>) -> Result<Action, Error> {
    match once(stored, &ctx).await {
        Err(outdated @ (Error::Status(WriteError::Outdated) | Error::NotLeading)) => {
            tracing::debug!(error = %crate::telemetry::chain(&outdated), "a pass came to nothing");
            Ok(Action::requeue(ctx.pace.task))
        }
        ended => ended,
    }
}

async fn once(stored: Arc<Guarded<PlatformLayer>>, ctx: &Context) -> Result<Action, Error> {
    ctx.metrics.reconcile("layer");
    // A Connector that was not read yet would be told as missing.
    ctx.synced.both().await;
    let layer = match &stored.0 {
        Ok(layer) => layer,
        Err(invalid) => {
            tell::invalid(ctx, &invalid.metadata, &invalid.error).await;
            return Ok(Action::await_change());
        }
    };
    let want = Want::of(layer);
    let deleting = layer.metadata.deletion_timestamp.is_some();
    if deleting && !layer.finalizers().iter().any(|f| f == FINALIZER) {
        forget(ctx, &layer.uid().unwrap_or_default(), Some(&connector_of(layer)));
        return Ok(Action::await_change());
    }
    if deleting && may_go_blind(layer, &want) {
        return let_go(ctx, layer).await;
    }
    match site(ctx, layer).await {
        Ok(site) => pass(ctx, layer, &want, &site).await,
        // The first look at the pool wakes us; this is for the case that there will be none.
        Err(NoSite::NotYet(_)) if layer.status.is_some() => Ok(Action::requeue(ctx.pace.task)),
        Err(NoSite::NotYet(trouble) | NoSite::Trouble(trouble)) => {
            report(ctx, layer, &want, Some(&trouble), None, None).await
        }
    }
}

/// Nothing of it is on a pool that we know of, or its owner said to leave that alone.
fn may_go_blind(layer: &PlatformLayer, want: &Want) -> bool {
    want.deletion == DeletionPolicy::Orphan || layer.status.as_ref().is_none_or(|s| s.pool.is_none())
}

/// The lease guards each call to a pool; this guards what is told: who does not lead any more leaves that to whoever does.
fn may_write(ctx: &Context) -> Result<(), Error> {
    if ctx.deadline.holds() { Ok(()) } else { Err(Error::NotLeading) }
}

async fn let_go(ctx: &Context, layer: &PlatformLayer) -> Result<Action, Error> {
    may_write(ctx)?;
    write::set_finalizer(&api(ctx, layer), &ctx.pace, layer, false).await.map_err(Error::Status)?;
    forget(ctx, &layer.uid().unwrap_or_default(), Some(&connector_of(layer)));
    Ok(Action::await_change())
}

/// What this process keeps of a layer goes with it. Called for each that is gone: one that never was in a pool goes without a last look.
pub fn forget(ctx: &Context, uid: &str, connector: Option<&ConnectorKey>) {
    ctx.slots.lock().unwrap_or_else(PoisonError::into_inner).give_back(uid);
    ctx.backoff.lock().unwrap_or_else(PoisonError::into_inner).succeeded(uid);
    ctx.looked.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    ctx.metrics.forget_layer(uid);
    if let Some(pool) = connector.and_then(|key| ctx.pools.get(key)) {
        pool.memory().forget(uid);
    }
    turns::leave(ctx, uid);
}

fn api(ctx: &Context, layer: &PlatformLayer) -> Api<PlatformLayer> {
    Api::namespaced(ctx.client.clone(), &layer.namespace().unwrap_or_default())
}

/// Observe and decide on the mirror; once more on the live pool and the live object before anything that cannot be taken back; act.
async fn pass(ctx: &Context, cached: &PlatformLayer, want: &Want, site: &Site) -> Result<Action, Error> {
    let mirror = site.pool.mirror.view();
    let (lens, mut scene, mut plan) = match decide(ctx, cached, want, site, &mirror, false) {
        Ok(decided) => decided,
        Err(t) => return report(ctx, cached, want, Some(&t), None, None).await,
    };
    if let Err(t) = step_files::compare(&lens, &mut scene, &mut plan).await {
        return report(ctx, cached, want, None, Some((&scene, &plan)), Some(&t)).await;
    }
    if !(plan.step.needs_live_look() || plan.next == Next::InFlight || scene.doubt || ctx.is_look_asked_for(cached)) {
        return carry_out(ctx, &lens, scene, plan).await;
    }
    let Some(fresh) = fetch(ctx, cached).await? else { return Ok(Action::await_change()) };
    let want = Want::of(&fresh);
    let view = match live::look_at(&site.pool, &fresh).await {
        Ok(view) => view,
        // Told of the object that was read: what it records beyond the other one was not looked for there, and would be dropped.
        Err(e) => {
            let told = decide(ctx, &fresh, &want, site, &mirror, false);
            let seen = told.as_ref().ok().map(|(_, scene, plan)| (scene, plan));
            return report(ctx, &fresh, &want, told.as_ref().err(), seen, Some(&trouble::of(&e))).await;
        }
    };
    if ctx.look_is_taken(&fresh) {
        site.pool.memory().ask_again(&fresh.uid().unwrap_or_default(), ctx.pace.now());
    }
    let (lens, mut scene, mut plan) = match decide(ctx, &fresh, &want, site, &view, true) {
        Ok(decided) => decided,
        Err(t) => return report(ctx, &fresh, &want, Some(&t), None, None).await,
    };
    if let Err(t) = step_files::compare(&lens, &mut scene, &mut plan).await {
        return report(ctx, &fresh, &want, None, Some((&scene, &plan)), Some(&t)).await;
    }
    if plan.step == Step::Send(Making::StartMachine)
        && let Err(t) = ask_hosts(site, &view, &want, &mut scene, &mut plan).await
    {
        return report(ctx, &fresh, &want, None, Some((&scene, &plan)), Some(&t)).await;
    }
    carry_out(ctx, &lens, scene, plan).await
}

async fn fetch(ctx: &Context, cached: &PlatformLayer) -> Result<Option<PlatformLayer>, Error> {
    let found = api(ctx, cached).get_opt(&cached.name_any()).await.map_err(Error::Read)?;
    Ok(found.filter(|l| l.uid() == cached.uid()))
}

async fn ask_hosts(site: &Site, view: &View, want: &Want, scene: &mut Scene, plan: &mut Plan) -> Result<(), Trouble> {
    let Sight::Found(m) = &mut scene.observed.machine else { return Ok(()) };
    let Some((vm, _)) = view.vms.by_uuid(&m.uuid) else { return Ok(()) };
    m.cannot_boot = live::cannot_boot(&site.pool, view, vm).await.map_err(|e| trouble::of(&e))?;
    *plan = plan::decide(want, &scene.observed);
    Ok(())
}

/// Asks for a machine slot, where a machine will be wanted. Only a decision asks: a grant that nobody decides on would be kept.
fn slot(ctx: &Context, layer: &PlatformLayer, want: &Want, site: &Site, all: &Census) -> Result<(), String> {
    if layer.metadata.deletion_timestamp.is_some() || want.suspend || is_frozen(layer) {
        // What is made already counts by its status.
        ctx.slots.lock().unwrap_or_else(PoisonError::into_inner).give_back(&want.uid);
        return Ok(());
    }
    let limit = usize::try_from(site.connector.spec.limits.machines).unwrap_or(0);
    let connector = connector_of(layer);
    let siblings = all.unfinished(&connector);
    ctx.slots.lock().unwrap_or_else(PoisonError::into_inner).ask(layer, siblings, limit)
}

fn decide<'a>(
    ctx: &'a Context,
    layer: &'a PlatformLayer,
    want: &'a Want,
    site: &'a Site,
    view: &'a View,
    live: bool,
) -> Result<(Lens<'a>, Scene, Plan), Trouble> {
    let around = ctx.census();
    let namesake = around.older_namesake(layer);
    let lens = Lens {
        client: &ctx.client,
        program: ctx.program.as_ref(),
        cluster: &ctx.cluster,
        pace: &ctx.pace,
        pool: &site.pool,
        layer,
        want,
        connector: &site.connector,
        view,
        live,
        deleting: layer.metadata.deletion_timestamp.is_some(),
        now: ctx.pace.now(),
        slot: slot(ctx, layer, want, site, &around),
        name_taken_by: namesake.map(|l| format!("layer {}/{}", l.namespace().unwrap_or_default(), l.name_any())),
        around,
    };
    let scene = observe(&lens)?;
    let plan = if lens.deleting {
        removal::decide_removal(want, &scene.observed, &scene.estate)
    } else {
        plan::decide(want, &scene.observed)
    };
    Ok((lens, scene, plan))
}

/// What a decision was made on travels with it, so that nothing else can be acted on.
async fn carry_out(ctx: &Context, lens: &Lens<'_>, scene: Scene, plan: Plan) -> Result<Action, Error> {
    let Lens { layer, want, pool, live, .. } = *lens;
    let uid = layer.uid().unwrap_or_default();
    tracing::debug!(layer = %layer.name_any(), live, phase = plan.phase.as_str(), step = ?plan.step, "decided");
    let sr = scene.observed.storage.uuid.as_str();
    let settled = ended::settle(ctx, pool, lens.view, &uid, sr);
    audit::scope(layer, &scene.observed.subject, lens.view, settled).await;
    let (now, within) = (ctx.pace.now(), ctx.pace.task);
    let refusal = pool.memory().refusal(&uid, &plan.step);
    if let Some(held) = refusal.as_ref().filter(|r| now < r.until) {
        report(ctx, layer, want, None, Some((&scene, &plan)), Some(&held.trouble)).await?;
        return Ok(Action::requeue(held.until.saturating_duration_since(now)));
    }
    // The mirror may not show yet what the last pass did: the same step again is waited for, not repeated.
    let done = !live && pool.memory().just_done(&uid, &plan.step, now, within);
    let again = !plan.step.only_status() && (done || ended::is_under_way(pool, lens.view, &uid, &plan.step));
    let plan = overdue::told(lens, &scene, plan, again);
    if again && plan.step != Step::Nothing {
        return Ok(Action::requeue(within));
    }
    if !lens.deleting && status::is_told_first(layer, &plan) {
        let told = Plan { step: Step::Nothing, ..plan };
        return report(ctx, layer, want, None, Some((&scene, &told)), None).await;
    }
    if plan.step.is_stream() && !pool.turns().take(&pool.streams, &uid) {
        let told = Plan { step: Step::Nothing, next: Next::Stream, ..plan };
        return report(ctx, layer, want, None, Some((&scene, &told)), refusal.as_ref().map(|r| &r.trouble)).await;
    }
    let acted = audit::scope(layer, &scene.observed.subject, lens.view, act(lens, &scene, &plan.step)).await;
    if let Ok(task) = &acted {
        ended::did(ctx, pool, &uid, &plan.step, task.clone());
    }
    let failed = acted.err().map(|f| {
        if let act::Failed::Pool(e) = &f {
            tracing::warn!(layer = %layer.name_any(), step = ?plan.step, error = %crate::telemetry::chain(e), "a step failed");
            ended::refused(ctx, pool, lens.view, &uid, &plan.step, e);
        }
        f.trouble(&plan.step)
    });
    if failed.is_none() && plan.step == Step::LetGo {
        return let_go(ctx, layer).await;
    }
    let entered = if failed.is_none() && plan.step == Step::Enter {
        may_write(ctx)?;
        Some(write::set_finalizer(&api(ctx, layer), &ctx.pace, layer, true).await.map_err(Error::Status)?)
    } else {
        None
    };
    let layer = entered.as_ref().unwrap_or(layer);
    // Taken again: what it was refused with stands until it is done, or hangs.
    let told = failed.as_ref().or(refusal.as_ref().filter(|_| !again).map(|r| &r.trouble));
    let action = report(ctx, layer, want, None, Some((&scene, &plan)), told).await?;
    if failed.is_none() {
        act::after_status(lens, &scene, &plan.step);
    }
    Ok(action)
}

/// Status, then events and metrics, then when to come back.
async fn report(
    ctx: &Context,
    layer: &PlatformLayer,
    want: &Want,
    connector: Option<&Trouble>,
    seen: Option<(&Scene, &Plan)>,
    failed: Option<&Trouble>,
) -> Result<Action, Error> {
    let outcome = Outcome { layer, want, connector, seen, failed, now: ctx.pace.wall() };
    let status = status::compose(&outcome);
    // Who cannot go on leaves the slot to others; what is made already counts by its status.
    let stalled = find(&status.conditions, ConditionType::Stalled);
    if stalled.is_some_and(|s| s.reason == Reason::ToolsISONotFound.as_str()) {
        // Which has the pool scanned for it, once.
        wake_connector(ctx, &connector_of(layer));
    }
    if connector.is_some() || stalled.is_some() {
        let uid = layer.uid().unwrap_or_default();
        ctx.slots.lock().unwrap_or_else(PoisonError::into_inner).give_back(&uid);
    }
    debug_assert_eq!(invariants(layer, &status), [""; 0], "a status that breaks the rules of conditions");
    may_write(ctx)?;
    turns::settle(ctx, layer, seen);
    let wrote = write::publish(&api(ctx, layer), &ctx.pace, layer, &status).await;
    // An intent that was not written holds nobody up.
    if matches!(wrote, Err(WriteError::Outdated | WriteError::Refused(_))) {
        turns::settle(ctx, layer, None);
    }
    if wrote.map_err(Error::Status)? {
        ctx.metrics.status_write("layer");
        tell::transition(ctx, layer, &status).await;
    }
    tell::measure(ctx, layer, &status);
    Ok(come_back(ctx, layer, seen, failed.or(connector)))
}

fn invariants(layer: &PlatformLayer, status: &crate::api::PlatformLayerStatus) -> Vec<String> {
    crate::api::condition::check_layer(&PlatformLayer { status: Some(status.clone()), ..layer.clone() })
}

fn come_back(ctx: &Context, layer: &PlatformLayer, seen: Option<(&Scene, &Plan)>, trouble: Option<&Trouble>) -> Action {
    let uid = layer.uid().unwrap_or_default();
    if let Some(t) = trouble {
        let pause = match t.reason.fault() {
            Some(Fault::Stalled) => ctx.pace.until(Next::Rest),
            Some(Fault::Wait) => ctx.pace.until(Next::Capacity),
            Some(Fault::Retry) | None => {
                let failures = ctx.backoff.lock().unwrap_or_else(PoisonError::into_inner).failed(&uid);
                Some(ctx.pace.backoff(failures))
            }
        };
        ctx.metrics.fault(t.reason.fault().unwrap_or(Fault::Retry).as_str());
        return Action::requeue(pause.unwrap_or(ctx.pace.task));
    }
    let Some((scene, plan)) = seen else { return Action::requeue(ctx.pace.task) };
    ctx.backoff.lock().unwrap_or_else(PoisonError::into_inner).succeeded(&uid);
    let pause = match ctx.pace.until(plan.next) {
        // Written: the watch wakes us with what we wrote. Changed on the pool: its event does. This is for the lost one.
        None => ctx.pace.task,
        Some(d) => d,
    };
    Action::requeue(scene.soon.map_or(pause, |soon| soon.min(pause)))
}
