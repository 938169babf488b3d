//! Operations stopped at each of their stages (xapi.md 14, "Order of a child's fields", VM.clone; 4.4, VDI.create).

use serde_json::{Value, json};

use super::brisk;

/// xapi.md 4.4, `VDI.create`: two steps inside; the name is there from the start, keys and tags come later.
#[tokio::test]
async fn a_new_disk_has_its_name_before_its_keys() {
    let raw = brisk().await;
    let clock = &raw.sim.pool.clock;
    let sr = raw.named("SR", "Shared storage").await;
    let row = json!({"name_label": "new", "name_description": "text", "SR": sr, "virtual_size": 4 << 20, "type": "user", "sharable": false,
        "read_only": false, "other_config": {"k": "v"}, "tags": ["t"]});
    clock.hold("VDI.create/");
    let task = raw.send_async("VDI.create", json!([row])).await;
    let step = async |stage: &str| clock.held(&format!("VDI.create/{stage}/")).await.id;
    let named = async || raw.call("VDI.get_by_name_label", json!(["new"])).await.unwrap();
    let busy = async || raw.get("SR", &sr, "current_operations").await;

    let id = step("queued").await;
    assert_eq!((busy().await, named().await), (json!({}), json!([])), "a waiting call shows nowhere");
    clock.release(id);
    let id = step("running").await;
    assert_eq!((busy().await, named().await), (json!({&task: "vdi_create"}), json!([])));
    clock.release(id);
    let id = step("row").await;
    let [vdi] = serde_json::from_value::<[String; 1]>(named().await).unwrap();
    let row = raw.call("VDI.get_record", json!([vdi])).await.unwrap();
    assert_eq!((&row["other_config"], &row["tags"]), (&json!({}), &json!([])));
    assert_eq!((&row["name_description"], &row["virtual_size"]), (&json!("text"), &json!(4 << 20)));
    assert!(row["allowed_operations"].as_array().unwrap().contains(&json!("destroy")));
    assert_eq!(raw.get("task", &task, "status").await, "pending");
    clock.release(id);
    assert_eq!(raw.wait(&task).await, Ok(json!(vdi)));
    let row = raw.call("VDI.get_record", json!([vdi])).await.unwrap();
    assert_eq!((&row["other_config"], &row["tags"]), (&json!({"k": "v"}), &json!(["t"])));
    assert_eq!(busy().await, json!({}));
}

/// xapi.md 14, VM.clone: the disk's row comes before the machine's, which is named and keyed from first sight; then VBDs, then cards.
#[tokio::test]
async fn a_clone_of_a_machine_shows_each_of_its_stages() {
    let raw = brisk().await;
    let clock = &raw.sim.pool.clock;
    let template = raw.named("VM", "with-disk").await;
    raw.call("VM.add_to_other_config", json!([template, "folder", "/x"])).await.unwrap();
    let source = raw.named("VDI", "with-disk 0").await;
    raw.call("VDI.add_tags", json!([source, "t"])).await.unwrap();
    clock.hold("VM.clone/");
    let task = raw.send_async("VM.clone", json!([template, "clone"])).await;
    let step = async |stage: &str| clock.held(&format!("VM.clone/{stage}/")).await.id;
    let machine = async || raw.call("VM.get_by_name_label", json!(["clone"])).await.unwrap();
    let disks = async || {
        let all = raw.call("VDI.get_all_records", json!([])).await.unwrap();
        let like = |row: &Value| row["name_label"] == "with-disk 0" && row["tags"] == json!(["t"]);
        let all = all.as_object().unwrap().clone().into_iter();
        all.filter(|(vdi, row)| *vdi != source && like(row)).map(|(vdi, _)| vdi).collect::<Vec<_>>()
    };
    let of = async |object: &str| raw.get("VDI", object, "current_operations").await;

    let id = step("queued").await;
    assert_eq!(raw.get("VM", &template, "current_operations").await, json!({}));
    clock.release(id);
    let id = step("running").await;
    assert_eq!(raw.get("VM", &template, "current_operations").await, json!({&task: "clone"}));
    clock.release(id);
    // The disk's own clone waits for its turn as any other does.
    let id = step("queued").await;
    assert_eq!(of(&source).await, json!({}));
    clock.release(id);
    let id = step("running").await;
    assert_eq!(of(&source).await, json!({&task: "clone"}));
    clock.release(id);
    for stage in ["base", "row", "named", "keyed"] {
        let id = step(stage).await;
        assert_eq!(disks().await.len(), 0, "{stage}: it is not whole");
        clock.release(id);
    }
    for stage in ["tagged", "linked"] {
        let id = step(stage).await;
        assert_eq!(disks().await.len(), 1, "{stage}");
        clock.release(id);
    }
    let id = step("disks").await;
    let [disk] = disks().await.try_into().unwrap();
    assert_eq!((of(&source).await, machine().await), (json!({}), json!([])), "a disk and no machine");
    clock.release(id);
    let id = step("record").await;
    let [vm] = serde_json::from_value::<[String; 1]>(machine().await).unwrap();
    let row = raw.call("VM.get_record", json!([vm])).await.unwrap();
    let keys = &row["other_config"];
    assert!(
        keys["folder"] == "/x" && keys["mac_seed"].is_string() && keys["base_template_name"] == "with-disk",
        "{keys}"
    );
    assert_eq!((&row["VBDs"], &row["VIFs"], &row["is_a_template"]), (&json!([]), &json!([]), &json!(true)));
    assert_eq!(raw.get("VDI", &disk, "VBDs").await, json!([]));
    clock.release(id);
    let id = step("vbd").await;
    let vbds = raw.get("VM", &vm, "VBDs").await;
    assert_eq!(raw.get("VBD", vbds[0].as_str().unwrap(), "VDI").await, json!(disk));
    clock.release(id);
    let id = step("vbds").await;
    assert_eq!(raw.get("VM", &vm, "VIFs").await, json!([]));
    clock.release(id);
    let id = step("vifs").await;
    let mac = async |vm: &str| {
        let vifs = raw.get("VM", vm, "VIFs").await;
        raw.get("VIF", vifs[0].as_str().unwrap(), "MAC").await
    };
    assert_ne!(mac(&vm).await, mac(&template).await, "an address of its own");
    assert_eq!(raw.get("task", &task, "status").await, "pending");
    clock.release(id);
    assert_eq!(raw.wait(&task).await, Ok(json!(vm)));
    assert_eq!(raw.get("VM", &template, "current_operations").await, json!({}));
}
