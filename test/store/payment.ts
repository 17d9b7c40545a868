/** A worker that charges cards, one customer's orders in sequence, and passes paid orders on to the stock worker. */
import { DeadLetter, Retry, SluiceError } from '@sluice/client'
import { setTimeout as pause } from 'node:timers/promises'
import { book, once, ready, sluice, tell } from './crew.js'
import { Payments, Picking, priority, Reminders, type Order } from './orders.js'

const CHARGE_MS = 50
const SLOW_BANK_MS = 20_000
const RETRY_AFTER = '800ms'

const newCards = book('new cards')

sluice.consume(Payments, { concurrency: 1, prefetch: 4 }, async (message, { signal }) => {
  const order = message.body
  await once('charged', message, () => charge(order, message.attempt))
  // The bank has taken the money and has not answered yet: the worst moment for a crash.
  if (order.card === 'slow' && message.attempt === 1) await pause(SLOW_BANK_MS, undefined, { signal })
  await cancelReminder(order)
  await sluice.atomic((tx) => {
    tx.ack(message)
    tx.publish(Picking, order, { priority: priority(order) })
  })
})
await ready()

async function charge({ id, customer, card }: Order, attempt: number): Promise<void> {
  await pause(CHARGE_MS)
  if (card === 'declined once' && attempt === 1) {
    await tell({ kind: 'declined', order: id, retryAfter: RETRY_AFTER })
    throw new Retry({ delay: RETRY_AFTER, reason: 'the card was declined' })
  }
  if (card === 'expired' && !newCards.has(customer)) {
    const reason = 'the card has expired'
    await tell({ kind: 'refused', order: id, reason })
    throw new DeadLetter(reason)
  }
}

async function cancelReminder({ id }: Order): Promise<void> {
  try {
    await sluice.queues.cancel(Reminders, { id })
    await tell({ kind: 'cancelled', order: id })
  } catch (error) {
    // The reminder was sent, or an earlier attempt cancelled it.
    if (!(error instanceof SluiceError && error.code === 'MESSAGE_NOT_FOUND')) throw error
  }
}
