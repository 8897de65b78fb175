"""The gRPC edge: translate, never decide.

`edge` is what every RPC passes. The rooms (`runtime`, `pods`, `containers`, `inside`, `usage`, `events`, `images`,
`host`, `history`, `networks`, `doctor`, `debts`, `replay`, `audit`, `transfer`) have one short method per RPC, and
`services` composes the gRPC services from them. `lookup` finds the records that a request is about; `views` and
`usage_views` turn records into messages, `entries` those of a list once for each record.
"""
