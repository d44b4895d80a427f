//! The dashboards of Grafana. The fields are those of its schema 39, which later versions migrate.

mod cost;
mod engines;
mod operations;
mod overview;
mod panel;
mod pipeline;
mod query;
mod realtime;
mod services;

use serde_json::{Value, json};

use self::panel::Panel;

/// A row of panels under a heading.
#[derive(Debug)]
struct Row {
    title: &'static str,
    panels: Vec<Panel>,
}

/// A board.
#[derive(Debug)]
struct Board {
    /// Its id and the name of its file.
    uid: &'static str,
    title: &'static str,
    description: &'static str,
    /// Whether the board has a variable for the price of a machine.
    price: bool,
    rows: Vec<Row>,
}

fn row(title: &'static str, panels: impl IntoIterator<Item = Panel>) -> Row {
    Row {
        title,
        panels: panels.into_iter().collect(),
    }
}

/// The files of the boards and their contents.
pub(crate) fn files() -> Vec<(String, String)> {
    let boards = [
        overview::board(),
        operations::board(),
        engines::board(),
        cost::board(),
        pipeline::board(),
        realtime::board(),
        services::board(),
    ];
    let boards = boards.iter();
    boards
        .map(|board| (format!("{}.json", board.uid), format!("{:#}\n", board.json())))
        .collect()
}

impl Board {
    fn json(&self) -> Value {
        json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["dalston"],
            "schemaVersion": 39,
            "version": 1,
            // The files are generated: changes in the browser would be lost.
            "editable": false,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"},
            "timezone": "utc",
            "annotations": {"list": []},
            "links": [{
                "type": "dashboards", "tags": ["dalston"], "title": "Boards", "asDropdown": true,
                "includeVars": true, "keepTime": true, "icon": "external link", "tooltip": "", "targetBlank": false,
            }],
            "templating": {"list": variables(self.price)},
            "panels": self.panels(),
        })
    }

    /// The panels from left to right, in as many lines as their row needs.
    fn panels(&self) -> Vec<Value> {
        const COLUMNS: u64 = 24;
        let mut panels = Vec::new();
        let mut y = 0;
        for row in &self.rows {
            let id = panels.len() as u64 + 1;
            panels.push(json!({
                "id": id, "type": "row", "title": row.title, "collapsed": false, "panels": [],
                "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
            }));
            y += 1;
            let (mut x, mut height) = (0, 0);
            for panel in &row.panels {
                if x + panel.width > COLUMNS {
                    y += height;
                    (x, height) = (0, 0);
                }
                let id = panels.len() as u64 + 1;
                panels.push(panel.json(id, x, y));
                x += panel.width;
                height = height.max(panel.height());
            }
            y += height;
        }
        panels
    }
}

/// The variables of all boards. `dalston_build_info` joins services with scrape jobs: the values of
/// `job` are those of the selected services.
fn variables(price: bool) -> Value {
    let query = |name: &str, label: &str, query: &str| {
        json!({
            "name": name, "label": label, "type": "query", "query": query, "definition": query,
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "refresh": 2, "sort": 1, "multi": true, "includeAll": true,
            "current": {"selected": true, "text": ["All"], "value": ["$__all"]},
        })
    };
    let with_all = |mut variable: Value| {
        variable["allValue"] = ".+".into();
        variable
    };
    let mut variables = json!([
        {
            "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus",
            "current": {"selected": true, "text": "Prometheus", "value": "prometheus"},
        },
        with_all(query("service", "Service", "label_values(dalston_build_info, service)")),
        // "All" is all jobs of the service, and not all jobs.
        query("job", "Job", r#"label_values(dalston_build_info{service=~"$service"}, job)"#),
        with_all(query("instance", "Instance", r#"label_values(dalston_build_info{service=~"$service",job=~"$job"}, instance)"#)),
        with_all(query("engine_id", "Engine", "label_values(dalston_engine_queue_wait_seconds_count, engine_id)")),
        {
            "name": "interval", "label": "Interval", "type": "interval", "query": "1m,5m,30m,1h,6h,1d",
            "auto": true, "auto_count": 60, "auto_min": "1m", "refresh": 2,
            "current": {"selected": true, "text": "auto", "value": "$__auto_interval_interval"},
        },
    ]);
    if price {
        let price = json!({
            "name": "price", "label": "Price of a machine per hour", "type": "textbox", "query": "1",
            "current": {"selected": true, "text": "1", "value": "1"},
        });
        if let Some(all) = variables.as_array_mut() {
            all.push(price);
        }
    }
    variables
}
