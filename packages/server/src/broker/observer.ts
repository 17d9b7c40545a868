/**
 * An observer of a broker: it is notified of each command and its answer after the command was applied, and of
 * messages that become due, expire or move. Tests use an observer to compare a broker with a model. Without an
 * observer, the cost is one check per batch, run or command.
 *
 * Calls are synchronous and happen within the turn. An observer changes nothing, and bytes are valid only during the
 * call.
 */
import {
  SluiceError,
  type Claim,
  type Granted,
  type Loss,
  type LostRange,
  type MessageRef,
  type Placed,
  type QueueInfo,
  type QueueOptions,
  type RescheduleRequest,
  type SettleItem,
  type TagRange,
} from '@sluice/protocol'
import type { Delivery, Queue, QueueObserver, Subscription } from '../queue/index.js'
import type { Producer } from '../state/producers.js'
import type { AtomicStep, EndReason } from './commands.js'

export interface Observer extends QueueObserver {
  // Producers. An answer can be an error.
  published(
    producer: Producer,
    bytes: Uint8Array,
    at: number,
    end: number,
    unanswered: number,
    answer: Placed | SluiceError,
  ): void
  stepped(
    producer: Producer,
    step: AtomicStep,
    unanswered: number,
    answer: readonly Placed[] | SluiceError,
  ): void
  detached(producer: Producer): void

  // Consumers.
  subscribed(subscription: Subscription, messages: number, bytes: number, limit: number | undefined): void
  credited(
    subscription: Subscription,
    messages: number,
    bytes: number,
    limit: number | undefined,
    drain: boolean,
  ): void
  /** Called before `Consumer.deliver`. */
  delivered(subscription: Subscription, delivery: Delivery): void
  settled(subscription: Subscription, items: readonly SettleItem[], stale: readonly TagRange[]): void
  started(subscription: Subscription, ranges: readonly TagRange[]): void
  starting(subscription: Subscription, ranges: readonly TagRange[]): void
  extended(
    subscription: Subscription,
    firstTag: number,
    count: number,
    durationMs: number,
    stale: readonly TagRange[],
  ): void
  claimed(subscription: Subscription, claims: readonly Claim[], granted: readonly Granted[]): void
  lost(subscription: Subscription, reason: Loss, ranges: readonly LostRange[]): void
  drained(subscription: Subscription): void
  unsubscribed(subscription: Subscription, endReason: EndReason, isStopping: boolean): void

  // Queues.
  ensured(queue: Queue, info: QueueInfo): void
  optionsChanged(queue: Queue, options: QueueOptions): void
  setPaused(queue: Queue, paused: boolean, changed: boolean): void
  deleted(queue: Queue, messages: number): void
  purging(queue: Queue): void
  purged(queue: Queue, messages: number): void
  counted(info: QueueInfo): void

  // Messages.
  cancelled(ref: MessageRef, answer: { readonly offset: number } | SluiceError): void
  rescheduled(
    request: RescheduleRequest,
    answer: { readonly offset: number; readonly dueMs: number } | SluiceError,
  ): void
  /** The dead message left `queue` for `target`, where it is at `targetOffset`. */
  moved(
    queue: Queue,
    offset: number,
    isRedrive: boolean,
    target: Queue,
    targetOffset: number,
    reason: string,
  ): void
  redriven(queue: Queue, offset: number): void
  discarded(queue: Queue, offset: number): void

  // Time. Between `looked` and `caughtUp`, due messages become ready and expired messages are removed.
  looked(queue: Queue): void
  caughtUp(queue: Queue): void
}

/** Runs `work`, and calls `observe` with its answer or its error. */
export function observed<Answer>(
  work: () => Answer,
  observe: (answer: Answer | SluiceError) => void,
): Answer {
  let answer: Answer
  try {
    answer = work()
  } catch (error) {
    if (error instanceof SluiceError) observe(error)
    throw error
  }
  observe(answer)
  return answer
}
