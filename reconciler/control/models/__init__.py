"""Objects of the control API (`/v1` on `control.sock` and `ui.sock`), the same in CLI, API and UI.

Times are RFC 3339 in UTC. Lists are `{"items": [...], "next": cursor or null}`. Errors are
`{"error": {"code", "message", "hint"}}`. On `ui.sock` every call carries the browser's session in
`X-Hive-Session` and hived resolves actor and role from it; on `control.sock` the peer's uid is the operator.

| call | request | answer | role |
|---|---|---|---|
| GET /v1/status | - | HiveStatus | viewer |
| GET /v1/agents · GET /v1/agents/{name} | - | AgentList · Agent | viewer |
| POST /v1/agents | NewAgent | Proposal | operator |
| POST /v1/agents/{name}/{start,stop,restart,destroy,cancel,wake} | Act | Agent | operator |
| GET /v1/holds · POST /v1/{hold,release} | - · Act | HoldList | operator |
| POST /v1/agents/{name}/{hold,release} | Act | HoldList | operator |
| POST /v1/agents/{name}/rollback | Rollback | Proposal | operator |
| GET /v1/kept | - | KeptList | viewer |
| POST /v1/agents/{name}/revive · …/purge | Act · Purge | Agent · Done | operator |
| GET, POST /v1/agents/{name}/attachments · POST …/{attachment}/{renew,end} | - | Attachment | operator |
| POST /v1/agents/{name}/nap | NapAgent | Agent | operator |
| POST /v1/agents/{name}/model | SetModel | Agent | operator |
| GET /v1/agents/{name}/spec | - | SpecView | viewer |
| GET /v1/agents/{name}/generations | - | GenerationList | viewer |
| GET /v1/plans | - | PlanList | viewer |
| GET /v1/agents/{name}/plan · why | - | Plan · Why | viewer |
| GET /v1/agents/{name}/transcript?before&after&limit | - | Transcript | viewer |
| GET /v1/agents/{name}/logs?lines | - | LogLines | viewer |
| GET /v1/messages?agent&before&limit | - | MessageList | viewer |
| POST /v1/messages | NewMessage | Message | operator |
| POST /v1/messages/{id}/{read,redeliver} | Write | Message | operator |
| GET /v1/proposals?state&agent · GET /v1/proposals/{id} | - | ProposalList · Proposal | viewer |
| POST /v1/proposals | Propose | Proposal | operator |
| GET /v1/proposals/{id}/diff?base | - | Diff | viewer |
| GET /v1/proposals/{id}/log?after | - | BuildLog | viewer |
| GET /v1/proposals/{id}/why | - | Why | viewer |
| POST /v1/proposals/{id}/approve | Approve | Proposal | operator |
| POST /v1/proposals/{id}/{deny,cancel} | Decide | Proposal | operator |
| GET /v1/questions?agent&state&q&before · GET /v1/questions/{id} | - | QuestionList · Question | viewer |
| POST /v1/questions/{id}/answer · …/cancel | Answer · Write | Question | operator |
| GET /v1/loops · POST /v1/loops/{name}/{peer} | - · DecideLoop | LoopList | viewer · operator |
| GET /v1/drafts · POST /v1/drafts/{name}/discard | - · Act | DraftList | viewer · operator |
| GET /v1/events?after&before&agent&kind&limit | - | EventList | viewer |
| GET /v1/stream (SSE, Last-Event-ID) | - | text/event-stream of Event | viewer |
| GET /v1/audit?before&limit | - | AuditList | viewer |
| POST /v1/login-links | NewLoginLink | LoginLink | operator, control.sock only |
| POST /v1/login | Login | Session | nobody, ui.sock only |
| GET /v1/session · POST /v1/logout | - | Session · Done | viewer |
| GET /v1/users · GET /v1/sessions | - | UserList · SessionList | operator |
| GET /v1/spending | - | SpendingList | viewer |
| GET /v1/budgets · GET /v1/budget · GET /v1/agents/{name}/budget | - | BudgetList · Budget | viewer |
| POST /v1/budget/raise · POST /v1/agents/{name}/budget/raise | RaiseBudget | Budget | operator |
| GET /v1/stats?agent&since&until&keys&points&by | - | Stats | viewer |
| GET /v1/metrics | - | MetricList | viewer |
| POST /v1/scrape | Scrape | MetricList | nobody, ui.sock only |
| GET /v1/backup/plan | - | BackupPlan | operator, control.sock only |
| GET /v1/backup?state | - | application/x-tar, see reconciler.backup.format | operator, control.sock only |
| GET /v1/doctor · POST /v1/doctor/repair | - | Health | operator, control.sock only |
| GET /openapi.json | - | OpenAPI 3.1 document | nobody |
"""

from __future__ import annotations

from reconciler.control.models.accounts import *
from reconciler.control.models.agents import *
from reconciler.control.models.approvals import *
from reconciler.control.models.base import *
from reconciler.control.models.care import *
from reconciler.control.models.history import *
from reconciler.control.models.stats import *
from reconciler.control.models.talk import *
