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
