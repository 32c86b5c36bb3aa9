"""From a commit to a decision: proposing, examining, deciding. What follows an approval is the passes'
work."""

from reconciler.approvals.service import ApprovalService

__all__ = ["ApprovalService"]
