//! The documents of metrics, and what uses them, name those that there are.

use std::collections::BTreeSet;

use peelfs::host::metrics::{self, Kind};

fn file(path: &str) -> String {
    std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Words that begin as the name of a metric does.
fn names(text: &str) -> BTreeSet<&str> {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.split(|c| !is_word(c)).filter(|word| word.starts_with("peelfs_")).collect()
}

/// Set `PEELFS_WRITE_DOCS` to write the table anew.
#[test]
fn the_document_has_all_metrics() {
    const BEGIN: &str = "| metric | type | labels | meaning |\n|---|---|---|---|\n";
    let mut table = String::from(BEGIN);
    for metric in metrics::ALL {
        let labels: Vec<_> = ["mount"].iter().chain(metric.labels).map(|label| format!("`{label}`")).collect();
        let unit = metric.unit().map_or(String::new(), |unit| format!(", {unit}"));
        let (name, kind) = (metric.full_name(), metric.kind.name());
        table += &format!("| `{name}` | {kind}{unit} | {} | {} |\n", labels.join(", "), metric.help);
    }
    let path = "docs/metrics.md";
    let text = file(path);
    let at = text.find(BEGIN).expect("the table");
    let end = text[at..].find("\n\n").map_or(text.len(), |end| at + end + 1);
    if std::env::var_os("PEELFS_WRITE_DOCS").is_some() {
        let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, [&text[..at], &table, &text[end..]].concat()).unwrap();
        return;
    }
    assert_eq!(text[at..end], table, "PEELFS_WRITE_DOCS=1 writes it anew");
}

#[test]
fn names_follow_the_conventions() {
    let mut seen = BTreeSet::new();
    for metric in metrics::ALL {
        let name = metric.full_name();
        assert!(seen.insert(name.clone()), "{name} is there twice");
        assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
        assert!(!metric.help.ends_with('.'), "{name}");
    }
}

/// A metric that was renamed would leave an alert silent for ever.
#[test]
fn alerts_and_dashboard_use_metrics_that_exist() {
    let mut known = BTreeSet::new();
    for metric in metrics::ALL {
        let name = metric.full_name();
        if metric.kind == Kind::Histogram {
            known.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")));
        } else {
            known.insert(name);
        }
    }
    for path in ["deploy/metrics/alerts.yml", "deploy/metrics/dashboard.json", "docs/guide.md"] {
        let text = file(path);
        let used = names(&text);
        assert!(path.ends_with("guide.md") || used.len() > 5, "{path}: {used:?}");
        for name in used {
            assert!(known.contains(name), "{path} uses `{name}`");
        }
    }
    let dashboard: serde_json::Value = serde_json::from_str(&file("deploy/metrics/dashboard.json")).unwrap();
    assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() > 8));
}

/// Each alert fires for what it is about, and for nothing else here.
#[test]
fn prometheus_fires_the_alerts() {
    if std::process::Command::new("promtool").arg("--version").output().is_err() {
        eprintln!("skipped: needs promtool");
        return;
    }
    // Values a minute apart.
    let table = [
        ("PeelfsReadsFail", r#"peelfs_failed_requests_total{mount="/m"}"#, "0+1x30"),
        ("PeelfsReadersWait", r#"peelfs_longest_wait_seconds{mount="/m"}"#, "11+60x30"),
        ("PeelfsRegistryFails", r#"peelfs_registry_failing_seconds{mount="/m"}"#, "61+60x30"),
        ("PeelfsSlowReads", r#"peelfs_request_wait_seconds_bucket{mount="/m",le="8"}"#, "0+9x30"),
        ("PeelfsLayerFailed", r#"peelfs_layers{mount="/m",state="failed"}"#, "1x30"),
        ("PeelfsCacheDamaged", r#"peelfs_damaged_spans_total{mount="/m"}"#, "0+1x30"),
        ("PeelfsCacheFull", r#"peelfs_unkept_spans_total{mount="/m"}"#, "0+1x30"),
    ];
    let alerts = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/metrics/alerts.yml");
    let text = file("deploy/metrics/alerts.yml");
    let named: BTreeSet<_> = text.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert_eq!(named, table.iter().map(|(name, ..)| *name).collect());

    let mut tests = format!("rule_files: [{alerts}]\nevaluation_interval: 1m\ntests:\n");
    for (name, series, values) in table {
        tests += "  - interval: 1m\n    input_series:\n";
        let mut all = vec![(series.to_owned(), values)];
        if series.contains("le=") {
            all.push((series.replace("le=\"8\"", "le=\"+Inf\""), values));
            all.push((series.replace("le=\"8\"", "le=\"1\""), "0x30"));
        }
        for (series, values) in all {
            tests += &format!("      - series: '{series}'\n        values: '{values}'\n");
        }
        tests += "    promql_expr_test:\n      - expr: count by (alertname) (ALERTS{alertstate=\"firing\"})\n";
        tests += "        eval_time: 20m\n        exp_samples:\n";
        tests += &format!("          - labels: '{{alertname=\"{name}\"}}'\n            value: 1\n");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tests.yml");
    std::fs::write(&path, tests).unwrap();
    for line in [["check", "rules", alerts], ["test", "rules", path.to_str().unwrap()]] {
        let output = std::process::Command::new("promtool").args(line).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{line:?}: {}", String::from_utf8_lossy(&said));
    }
}
