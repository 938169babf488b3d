//! The life of a layer: the real controller, a real API server, a simulated pool.

use lamina::api::Phase;
use lamina::demo::person;
use serde_json::json;

use crate::common::rig::Rig;

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_walks_all_phases() {
    let rig = Rig::new().await;
    rig.guest("walk", person::usual(false));
    let _controller = rig.run().await;
    rig.layer("walk", json!({})).await;
    rig.until_phase("walk", Phase::MachineRunning).await;
    rig.until_reason("walk", "ApproveFinalize").await;
    rig.approve("walk", "1").await;
    let done = rig.until_finalized("walk", "1").await;
    let status = done.status.expect("a status");
    assert_eq!(status.phase, Some(Phase::Finalized));
    assert!(status.machine.is_none() && status.disk.is_none() && status.operation.is_none(), "{status:#?}");
}
