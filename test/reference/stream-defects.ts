/** Planted bugs of streams and groups. */
import type { Broker } from '../../packages/server/src/broker/broker.js'
import type { Queue } from '../../packages/server/src/queue/index.js'
import { around, installed, type PlantedDefect } from './defects.js'
import { CHUNK_MESSAGES } from './streams.js'

/** Changes each group once, when it is created or found after a restart. */
function aroundGroups(broker: Broker, change: (group: Queue) => void): void {
  const changed = new WeakSet<Queue>()
  const changeOne = (name: string): void => {
    const group = broker.catalog.queue(name)
    if (!changed.has(group)) change(group)
    changed.add(group)
  }
  for (const { name } of broker.groups.list(undefined, '', 100).groups) changeOne(name)
  around(broker.groups, 'ensure', (ensure) => (request) => {
    const answer = ensure(request)
    changeOne(request.name)
    return answer
  })
}

function cancelIn(group: Queue, offset: number, nowMs: number): void {
  try {
    group.cancel(offset, nowMs)
  } catch (error) {
    // The message is not in the line.
    if (!(error instanceof Error && error.name === 'SluiceError')) throw error
  }
}

export const STREAM_DEFECTS: readonly PlantedDefect[] = [
  installed('a group skips the first message of a chunk', (broker) => {
    aroundGroups(broker, (group) =>
      around(group, 'enter', (enter) => (end, keys, isSkipped) => {
        const { next } = group
        if (isSkipped || next % CHUNK_MESSAGES !== 0 || end === next + 1) {
          enter(end, keys, isSkipped)
          return
        }
        enter(next + 1, undefined, true)
        enter(end, keys?.subarray(2), false)
      }),
    )
  }),
  installed('an acknowledgement in a group removes the message from the lines of other groups', (broker) => {
    aroundGroups(broker, (group) =>
      around(group, 'ack', (ack) => (offset, count, nowMs, bytes) => {
        ack(offset, count, nowMs, bytes)
        for (const other of group.source!.groups as readonly Queue[])
          if (other !== group) cancelIn(other, offset, nowMs)
      }),
    )
  }),
  installed('a group does not count what retention removes', (broker) => {
    aroundGroups(broker, (group) => around(group, 'missFact', (miss) => (end) => miss(end, 0)))
  }),
  installed('retention takes one message too many from a group', (broker) => {
    aroundGroups(broker, (group) =>
      around(group, 'losing', (losing) => (end, nowMs) => losing(Math.min(end + 1, group.next), nowMs)),
    )
  }),
  installed('a settle under a lease that a move of the group ended is accepted', (broker) => {
    const moved = new WeakSet<Queue>()
    aroundGroups(broker, (group) =>
      around(group, 'moveTo', (moveTo) => (to, nowMs) => {
        moveTo(to, nowMs)
        moved.add(group)
      }),
    )
    around(broker.leases, 'settle', (settle) => (subscription, items) => {
      const stale = settle(subscription, items)
      return moved.has(subscription.queue) ? [] : stale
    })
  }),
  installed('a retry in a group does not hold back the later messages of its key', (broker) => {
    aroundGroups(broker, (group) =>
      around(group, 'retry', (retry) => (offset, dueMs, nowMs, ...rest) => {
        retry(offset, dueMs, nowMs, ...rest)
        group.line.changeRules({ ...group.options, onFail: 'skip' }, nowMs)
      }),
    )
  }),
  installed('the fact that a tick has fired is not written', (broker) => {
    around(broker.intake, 'take', (take) => (queue, batch, arrival) => take(queue, batch, arrival))
  }),
  installed('a refused tick counts as fired', (broker) => {
    around(broker.intake, 'take', (take) => (queue, batch, arrival, before) => {
      try {
        return take(queue, batch, arrival, before)
      } catch {
        return { baseOffset: queue.next, duplicates: undefined, gate: 0 }
      }
    })
  }),
]
