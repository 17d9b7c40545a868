/**
 * Planted bugs of topics, streams, readers, groups, expiring queues, schedules and replies. They are found in worlds with
 * routed traffic; see routed-traffic.ts.
 */
import { Mailboxes } from '../../packages/server/src/broker/mailboxes.js'
import { UnusedQueues } from '../../packages/server/src/broker/unused-queues.js'
import { FactBuffer, GroupContents } from '../../packages/server/src/queue/index.js'
import { Contents } from '../../packages/server/src/queue/contents.js'
import { Source } from '../../packages/server/src/queue/source.js'
import { Definitions } from '../../packages/server/src/state/definitions.js'
import type { Defect } from './defect.js'
import { replaced } from './defects.js'

export const ROUTED_DEFECTS: readonly Defect[] = [
  {
    name: 'after a crash, only the first queue of a shared batch has its messages',
    install: () => {
      let last = 0
      return replaced(Contents.prototype, (before) => ({
        referFact(refers, batch, position, ...rest) {
          const isFurther = this.appliedFrom !== Infinity && position === last
          last = position
          if (!isFurther) before.referFact.call(this, refers, batch, position, ...rest)
        },
      }))
    },
  },
  {
    name: 'a binding is lost with its page',
    install: () =>
      replaced(Definitions.prototype, (before) => ({
        restorePage(this: Definitions, id, bytes, ...rest) {
          before.restorePage.call(this, id, bytes, ...rest)
          this.undefine(this.get(id)!)
        },
      })),
  },
  {
    name: 'a message that arrives in a queue is not a use of the queue',
    install: () =>
      replaced(UnusedQueues.prototype, () => ({
        used() {},
      })),
  },
  {
    name: 'the time of an unused queue is not set after a call',
    install: () =>
      replaced(UnusedQueues.prototype, () => ({
        usedName() {},
      })),
  },
  {
    name: 'a release reaches messages that arrive in the same turn',
    install: () =>
      replaced(FactBuffer.prototype, (before) => ({
        release(from, end) {
          before.release.call(this, from, Math.ceil(end / 1_024) * 1_024)
        },
      })),
  },
  {
    name: 'a reader skips the first message of a chunk',
    install: () =>
      replaced(Source.prototype, (before) => ({
        nextRetained(offset) {
          const next = before.nextRetained.call(this, offset)
          return offset > 0 && next > 0 && next % 1_024 === 0 ? next + 1 : next
        },
      })),
  },
  {
    name: 'that messages have entered a group is not written',
    install: () =>
      replaced(FactBuffer.prototype, () => ({
        enter() {},
      })),
  },
  {
    name: 'after a crash, a group has not moved',
    install: () =>
      replaced(GroupContents.prototype, (before) => ({
        moveFact(to) {
          if (this.appliedFrom === Infinity) before.moveFact.call(this, to)
        },
      })),
  },
  {
    name: 'a copied batch of a stream keeps its old place in the groups',
    install: () =>
      replaced(GroupContents.prototype, (before) => ({
        relocateFact(this: GroupContents, ...where) {
          const { groups } = this
          this.groups = []
          before.relocateFact.call(this, ...where)
          this.groups = groups
        },
      })),
  },
  {
    name: 'a tick that fired is not written',
    install: () =>
      replaced(FactBuffer.prototype, () => ({
        fired() {},
      })),
  },
  {
    name: 'a tick fires again after a crash',
    install: () =>
      replaced(Definitions.prototype, (before) => ({
        fired(definition, tickMs, count) {
          before.fired.call(this, definition, tickMs, count)
          if (tickMs % 2_000 < 1_000) definition.number = tickMs - 1
        },
      })),
  },
  {
    name: 'a reply is sent twice',
    install: () =>
      replaced(Mailboxes.prototype, (before) => ({
        reply(...reply) {
          before.reply.call(this, ...reply)
          return before.reply.call(this, ...reply)
        },
      })),
  },
  {
    name: 'every third reply is lost',
    install: () => {
      let replies = 0
      return replaced(Mailboxes.prototype, (before) => ({
        reply(...reply) {
          return ++replies % 3 === 0 ? 0 : before.reply.call(this, ...reply)
        },
      }))
    },
  },
]
