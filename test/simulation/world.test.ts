import { expect, test } from 'vitest'
import { runWorld } from './world.js'

test('a run', async () => {
  const from = Number(process.env['SLUICE_SEED'] ?? 1)
  const count = Number(process.env['SEEDS'] ?? 1)
  const total = new Map<string, number>()
  const t = performance.now()
  let failed = 0
  for (let seed = from; seed < from + count; seed++) {
    try {
      const report = await runWorld({ seed })
      for (const [k, v] of report.counts) total.set(k, (total.get(k) ?? 0) + v)
      total.set('events', (total.get('events') ?? 0) + report.events)
    } catch (error) {
      if (count === 1) throw error
      failed++
      console.log((error as Error).message.split('\n').slice(0, 4).join('\n'))
    }
  }
  console.log(
    [...total]
      .sort()
      .map(([k, v]) => `${k}: ${v}`)
      .join('\n'),
    performance.now() - t,
  )
  expect(failed).toBe(0)
}, 600_000)
