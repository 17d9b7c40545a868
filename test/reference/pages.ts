/** Compares the pages of HISTORY and PEEK with the model. */
import {
  addressName,
  type HistoryEvent,
  type MessageFilter,
  type MessageState,
  type PeekPage,
  type PeekedMessage,
} from '@sluice/protocol'
import type { Broker } from '../../packages/server/src/broker/broker.js'
import { OPERATOR, type Bench } from './bench.js'
import { redrivesOf } from './model.js'
import { contentOf } from './records.js'
import { same } from './same.js'
import { Difference, Refused, type ModelMessage } from './state.js'

type HistoryPage = Awaited<ReturnType<Broker['history']['page']>>

/**
 * Compares the answer to HISTORY. A complete answer has all events; an incomplete one lacks the oldest, which the log
 * has lost.
 */
export async function compareHistory(bench: Bench, name: string, offset: number): Promise<void> {
  const events: HistoryEvent[] = []
  let isComplete = false
  for (let cursor: string | null | undefined; cursor !== null;) {
    const at: string | undefined = cursor
    const page: HistoryPage | undefined = await bench.bothLater(
      `history of message ${offset} of ${name}`,
      () => bench.broker.history.page({ name: addressName(name), offset, cursor: at }, OPERATOR),
      () => {
        if (offset >= bench.model.queue(name).next) throw new Refused(['MESSAGE_NOT_FOUND'])
      },
      (answer) => {
        events.push(...answer.events)
        isComplete = answer.complete
      },
    )
    if (page === undefined) return
    cursor = page.cursor
  }
  const all = bench.model.queue(name).history.get(offset) ?? []
  const expected = isComplete ? all : all.slice(all.length - events.length)
  // If the model has no text for an event, the broker may choose the words.
  const shown = events.map((event, at) =>
    expected[at]?.text === undefined ? { ...event, text: undefined } : event,
  )
  same(`history of message ${offset} of ${name}, ${isComplete ? '' : 'not '}complete`, shown, expected)
  bench.count('histories')
  if (isComplete) bench.count('complete histories')
  for (const { event } of events) bench.count(`in a history: ${event}`)
}

/** Compares all pages of PEEK. */
export async function comparePeek(
  bench: Bench,
  name: string,
  state: MessageState | undefined,
  limit: number,
  filter: MessageFilter,
): Promise<void> {
  const shown: PeekedMessage[] = []
  for (let from: number | undefined = 0; from !== undefined;) {
    const at: number = from
    const page: PeekPage | undefined = await bench.bothLater(
      `peek into ${name}`,
      () => bench.broker.operator.peek({ name: addressName(name), state, from: at, limit, filter }, OPERATOR),
      () => {},
      ({ messages, next }) => {
        if (messages.length > limit) throw new Difference(`a page of ${messages.length} messages was shown`)
        if (next !== undefined && next <= (messages.at(-1)?.offset ?? at - 1))
          throw new Difference(`the next page starts at ${next}, within the previous page`)
        shown.push(...messages)
      },
    )
    from = page?.next
  }
  // An expired message is not shown, whether or not it was swept; and PEEK does not sweep.
  const stale = new Set(bench.model.stale(bench.model.queue(name)))
  const expected = bench.model
    .select(bench.model.queue(name), state, 0, Infinity, filter)
    .filter((message) => !stale.has(message))
  same(
    `messages shown of ${name}`,
    shown.map(({ offset }) => offset),
    expected.map(({ offset }) => offset),
  )
  for (const [index, message] of expected.entries()) comparePeeked(bench, name, shown[index]!, message)
  bench.count('peeks')
  bench.count('messages peeked', shown.length)
}

function comparePeeked(bench: Bench, name: string, shown: PeekedMessage, message: ModelMessage): void {
  const { state, lease, attempts, earlier, content } = message
  const timeMs = state === 'dead' ? message.diedMs : state === 'leased' ? lease!.atMs : message.lineMs
  const holder = lease === undefined ? undefined : bench.pairOf(lease.subscription)
  same(
    `message ${message.offset} of ${name}`,
    { ...shown, record: contentOf(shown.record, 0) },
    {
      state,
      death: state === 'dead' ? message.death : undefined,
      attempts,
      totalAttempts: attempts + earlier.attempts,
      redrives: redrivesOf(message),
      offset: message.offset,
      publishedAtMs: message.publishedMs,
      timeMs,
      expiresAtMs: state === 'dead' ? 0 : message.expiresMs,
      reason: state === 'dead' ? (message.reason ?? shown.reason) : shown.reason,
      holder: holder?.connection.consumer.label ?? '',
      record: content,
    },
  )
}
