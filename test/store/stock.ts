/** A worker that picks paid orders and passes them on to the mail worker. */
import { setTimeout as pause } from 'node:timers/promises'
import { once, ready, sluice } from './crew.js'
import { Mails, Picking } from './orders.js'

const PICK_MS = 15

sluice.consume(Picking, { concurrency: 4 }, async (message) => {
  await once('picked', message, () => pause(PICK_MS))
  await sluice.atomic((tx) => {
    tx.ack(message)
    tx.publish(Mails, message.body)
  })
})
await ready()
