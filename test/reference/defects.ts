/**
 * Planted bugs, which are added to a correct broker from outside. The comparison must find each of them. Otherwise it
 * would prove nothing when it finds no bug in the broker itself.
 */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  LIMITS,
  OUTCOME,
  readTopicAddress,
  readU32,
  readU64,
  sealBatch,
  writeRecordHead,
  CONTENT_TYPE,
} from '@sluice/protocol'
import type { Broker } from '../../packages/server/src/broker/broker.js'
import type { Target } from '../../packages/server/src/broker/commands.js'
import type { Consumer, Delivery, Queue, Run, Subscription } from '../../packages/server/src/queue/index.js'
import { matchesTopic } from '../rules/topic.js'
import type { Defect } from './bench.js'
import { contentOf } from './records.js'
import type { Content } from './state.js'

/** A bug, planted anew for each run, because it can keep state during a run. */
export interface PlantedDefect {
  readonly name: string
  readonly plant: () => Defect
}

/** Wraps a method of a broker, or of a part of it. */
export function around<Part extends object, Name extends keyof Part>(
  part: Part,
  name: Name,
  wrap: (method: Part[Name]) => Part[Name],
): void {
  const method = part[name] as (...args: never[]) => unknown
  Object.defineProperty(part, name, { configurable: true, value: wrap(method.bind(part) as Part[Name]) })
}

/** Passes deliveries through `change` before consumers receive them. */
function aroundDeliveries(broker: Broker, change: (run: Run, bytes: Uint8Array, start: number) => Run): void {
  around(broker.leases, 'subscribe', (subscribe) => (request, channel, consumer) => {
    const bent: Consumer = Object.create(consumer, {
      deliver: {
        value: (subscription: Subscription, delivery: Delivery) => {
          const { run, start } = delivery
          const bytes = delivery.bytes.slice()
          consumer.deliver(subscription, { ...delivery, run: change({ ...run }, bytes, start), bytes })
        },
      },
    }) as Consumer
    return subscribe(request, channel, bent)
  })
}

/**
 * The broker reads changed options, which take as many bytes as the options of the message. Consumers receive the
 * message as it was published.
 */
function blind(name: string, change: (content: Content) => Partial<Content>): PlantedDefect {
  const plant = (): Defect => {
    const originals = new Map<string, Content>()
    const restore = (bytes: Uint8Array, at: number): void => {
      const { body } = contentOf(bytes, at)
      const original = originals.get(body)
      if (original !== undefined) write(bytes, at, original)
    }
    return {
      name,
      install: (broker) => {
        around(broker.intake, 'publish', (publish) => (producer, queue, bytes, at, end, unanswered) => {
          let record = at + BATCH_HEADER_BYTES
          let count = 0
          for (; record < end; record += readU32(bytes, record), count++) {
            const content = contentOf(bytes, record)
            originals.set(content.body, content)
            write(bytes, record, { ...content, ...change(content) })
          }
          sealBatch(bytes, at, end, {
            type: BATCH_TYPE.messages,
            count,
            batchNumber: readU64(bytes, at + 24),
          })
          return publish(producer, queue, bytes, at, end, unanswered)
        })
        aroundDeliveries(broker, (run, bytes, start) => {
          let at = start
          for (let index = 0; index < run.count && at < bytes.length; index++) {
            const size = readU32(bytes, at)
            if (size === 0 || at + size > bytes.length) break
            restore(bytes, at)
            at += size
          }
          return run
        })
        around(broker.operator, 'peek', (peek) => async (...request) => {
          const page = await peek(...request)
          for (const { record } of page.messages) restore(record, 0)
          return page
        })
      },
    }
  }
  return { name, plant }
}

function write(bytes: Uint8Array, at: number, content: Content): void {
  const { headers, body } = content
  const hasHeaders = Object.keys(headers).length > 0
  const options = { ...content, headers: hasHeaders ? headers : undefined }
  let next = writeRecordHead(bytes, at, options, CONTENT_TYPE.text, body.length)
  for (let index = 0; index < body.length; index++) bytes[next++] = body.charCodeAt(index)
}

export function installed(name: string, install: (broker: Broker) => void): PlantedDefect {
  return { name, plant: () => ({ name, install }) }
}

/** A bug of each broker but the first. */
function afterCrash(name: string, install: (broker: Broker) => void): PlantedDefect {
  const plant = (): Defect => {
    let isFirst = true
    return {
      name,
      install: (broker) => {
        if (!isFirst) install(broker)
        isFirst = false
      },
    }
  }
  return { name, plant }
}

/** A string of the same length that hardly any other message has. */
function otherText(text: string, { body }: Content): string {
  return String.fromCharCode(48 + (Number.parseInt(body, 10) % 70)).padEnd(text.length, 'z')
}

export const DEFECTS: readonly PlantedDefect[] = [
  blind('priority is ignored', () => ({ priority: 0 })),
  blind('a message is delivered while its key is held', (content) =>
    content.key === undefined ? {} : { key: otherText(content.key, content) },
  ),
  blind('an id is forgotten now and then', (content) =>
    content.id === undefined || Number.parseInt(content.body, 10) % 5 > 0
      ? {}
      : { id: otherText(content.id, content) },
  ),
  blind('a delayed message is delivered a millisecond early', ({ delayMs }) =>
    delayMs === undefined ? {} : { delayMs: Math.max(0, delayMs - 1) },
  ),
  blind('the time to live of messages is ignored', ({ ttlMs }) =>
    ttlMs === undefined ? {} : { ttlMs: LIMITS.delayMsMax },
  ),
  installed('a release is charged', (broker) => {
    around(broker.leases, 'settle', (settle) => (subscription, items) => {
      const bent = items.map((item) =>
        item.outcome === OUTCOME.release ? { ...item, outcome: OUTCOME.retry, delayMs: 0 } : item,
      )
      return settle(subscription, bent)
    })
  }),
  installed('a retry is not charged', (broker) => {
    around(broker.leases, 'settle', (settle) => (subscription, items) => {
      const bent = items.map((item) =>
        item.outcome === OUTCOME.retry ? { ...item, outcome: OUTCOME.release } : item,
      )
      return settle(subscription, bent)
    })
  }),
  installed('an invalid message dies as a rejected one', (broker) => {
    around(
      broker.leases,
      'settle',
      (settle) => (subscription, items) =>
        settle(
          subscription,
          items.map((item) => ({ ...item, invalid: undefined })),
        ),
    )
  }),
  installed('a redelivery is not marked', (broker) => {
    aroundDeliveries(broker, (run) => ({ ...run, redelivered: run.attempt > 1 && run.redelivered }))
  }),
  installed('a suspect is not marked', (broker) => {
    aroundDeliveries(broker, (run) => ({ ...run, alone: false }))
  }),
  installed('a lost connection charges no message', (broker) => {
    around(broker.leases, 'disconnect', () => (subscriptions) => {
      for (const subscription of subscriptions) broker.leases.unsubscribe(subscription, 'normal')
    })
  }),
  installed(
    'in a queue with `single`, the oldest subscription gets messages, even without credit',
    (broker) => {
      around(broker.leases, 'subscribe', (subscribe) => (...request) => {
        const subscription = subscribe(...request)
        Object.defineProperty(subscription.queue, 'soleSubscription', {
          configurable: true,
          get: () => subscription.queue.subscriptions[0],
        })
        return subscription
      })
    },
  ),
  installed('an extension does nothing', (broker) => {
    around(broker.leases, 'extend', () => () => [])
  }),
  installed('a limit accepts one message too many', (broker) => {
    around(broker.intake, 'publish', (publish) => (producer, to, ...rest) => {
      let queue: ReturnType<Broker['catalog']['queue']>
      try {
        queue = typeof to === 'string' ? broker.catalog.queue(to) : to
      } catch {
        return publish(producer, to, ...rest)
      }
      const { options } = queue
      if (options.maxMessages > 0) queue.options = { ...options, maxMessages: options.maxMessages + 1 }
      try {
        return publish(producer, to, ...rest)
      } finally {
        queue.options = options
      }
    })
  }),
  installed('a turn does not continue with the due messages of the previous turn', (broker) => {
    around(broker.turn, 'continueDue', () => () => {})
  }),
  installed('only one turn evicts a part of an excess', (broker) => {
    around(broker.intake, 'endTurn', () => () => {})
  }),
  installed('a refused atomic step acknowledges its messages', (broker) => {
    around(broker.intake, 'atomic', (atomic) => (producer, step, unanswered) => {
      try {
        return atomic(producer, step, unanswered)
      } catch (error) {
        for (const { subscription, firstTag, count } of step.acks)
          if (subscription !== undefined)
            broker.leases.settle(subscription, [{ firstTag, count, outcome: OUTCOME.ack }])
        throw error
      }
    })
  }),
  installed('an atomic step drops messages that no target gets', (broker) => {
    around(broker.intake, 'atomic', (atomic) => (producer, step, unanswered) => {
      const batches = step.batches.map((batch) => ({ ...batch, queue: batch.queue.replace(/^#\??/, '#?') }))
      return atomic(producer, { ...step, batches }, unanswered)
    })
  }),
  installed('a redrive ignores its filter', (broker) => {
    around(broker.operator, 'redrive', (redrive) => (request, by) => redrive({ ...request, filter: {} }, by))
  }),
  installed('a dead message is redriven without a maximum', (broker) => {
    around(broker.operator, 'redrive', (redrive) => (request, by) => redrive({ ...request, force: true }, by))
  }),
  installed('a purge does not notify the holders', (broker) => {
    aroundConsumer(broker, { lost: () => {} })
  }),
  installed('a restart forgets that a queue is paused', (broker) => {
    for (const { name } of broker.catalog.list('', 100).queues) broker.catalog.queue(name).paused = false
  }),
  installed('a page of a replay begins with the last message of the previous page', (broker) => {
    around(broker.replays, 'page', (replay) => async (request, by) => {
      const page = await replay(request, by)
      if (page.cursor === null) return page
      const [offset, end] = page.cursor.split(':').map(Number)
      return { ...page, cursor: `${offset! - 1}:${end}` }
    })
  }),
  installed('a later page of a replay skips its first message', (broker) => {
    around(broker.replays, 'page', (replay) => async (request, by) => {
      const page = await replay(request, by)
      if (page.cursor === null) return page
      const [offset, end] = page.cursor.split(':').map(Number)
      return { ...page, cursor: `${offset! + 1}:${end}` }
    })
  }),
  installed('the end of a consumer does not count as a use of its queue', (broker) => {
    around(broker.unused, 'used', () => () => {})
  }),
  installed('a queue whose unused time is changed keeps the earlier timer', (broker) => {
    around(broker.unused, 'watch', (watch) => (queue) => {
      if (queue.next === 0) watch(queue)
    })
  }),
  installed('a history has no deliveries', (broker) => {
    around(broker.history, 'page', (history) => async (request, by) => {
      const page = await history(request, by)
      return { ...page, events: page.events.filter(({ event }) => event !== 'delivered') }
    })
  }),
  installed('a key at its rate holds back the other keys', (broker) => {
    aroundQueues(broker, (queue) =>
      around(
        queue,
        'nextRun',
        (nextRun) => (max, nowMs, run, budget) =>
          queue.info(nowMs).heldKeys === 0 && nextRun(max, nowMs, run, budget),
      ),
    )
  }),
  installed('the bucket of a queue refills twice as fast', (broker) => {
    aroundQueues(broker, (queue) => {
      const { bucket } = queue
      if (bucket === undefined) return
      const startMs = broker.turn.nowMs
      around(bucket, 'available', (available) => (nowMs) => available(startMs + 2 * (nowMs - startMs)))
      around(bucket, 'take', (take) => (count, nowMs) => take(count, startMs + 2 * (nowMs - startMs)))
    })
  }),
  installed('# matches exactly one level', (broker) => {
    around(broker.topics, 'targetsOf', (targetsOf) => (address, batch, flags) => {
      const { name } = readTopicAddress(address)
      const { bindings } = broker.topics.list({ pattern: undefined, target: undefined, after: 0 })
      const isReached = ({ queue }: { readonly queue: Queue }): boolean =>
        bindings.some(
          ({ pattern, target }) => target === queue.name && matchesTopic(pattern.replaceAll('#', '*'), name),
        )
      return targetsOf(address, batch, flags).filter(isReached)
    })
  }),
  afterCrash('a publish to a topic reaches only its first target after a restart', (broker) => {
    around(broker.sharedIntake, 'publish', (publish) => (producer, targetsOf, batch, unanswered) => {
      let targets = 0
      const first = (flags: number): readonly Target[] => {
        const all = targetsOf(flags)
        targets = all.length
        return all.slice(0, 1)
      }
      const answer = publish(producer, first, batch, unanswered)
      return targets === 0 ? answer : targets
    })
  }),
  installed('the deletion of a queue leaves its bindings', (broker) => {
    around(broker.topics, 'forget', () => () => {})
  }),
  installed('a retry pauses no key', (broker) => {
    around(
      broker.leases,
      'settle',
      (settle) => (subscription, items) =>
        settle(
          subscription,
          items.map((item) => ({ ...item, pauseKey: undefined })),
        ),
    )
  }),
]

/** Changes each queue once, when it gets its first subscription. */
function aroundQueues(broker: Broker, change: (queue: Queue) => void): void {
  const changed = new WeakSet<Queue>()
  around(broker.leases, 'subscribe', (subscribe) => (...request) => {
    const subscription = subscribe(...request)
    if (!changed.has(subscription.queue)) change(subscription.queue)
    changed.add(subscription.queue)
    return subscription
  })
}

/** Replaces callbacks of the consumers. */
function aroundConsumer(broker: Broker, change: Partial<Consumer>): void {
  around(broker.leases, 'subscribe', (subscribe) => (request, channel, consumer) => {
    const bent = Object.create(consumer, Object.getOwnPropertyDescriptors(change)) as Consumer
    return subscribe(request, channel, bent)
  })
}
