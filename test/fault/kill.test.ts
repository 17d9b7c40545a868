/**
 * A kill at any moment loses, alters or reorders no confirmed message, and repeats none without the redelivered mark.
 */
import { expect, test } from 'vitest'
import { runs } from '../amount.js'
import { complaints, killRepeatedly, summary } from './kill.js'

const KILLS = Number(process.env['SLUICE_KILLS'] ?? runs(15, 200))
const SEED = Number(process.env['SLUICE_SEED'] ?? Date.now() % 1_000_000)

test(
  `a broker killed ${KILLS} times under load keeps what it confirmed`,
  async () => {
    const result = await killRepeatedly({ kills: KILLS, seed: SEED })
    console.log(summary([result]))
    expect(complaints(result)).toBe('')
    const { report, rolls, removed, moments } = result
    expect(moments.load + moments.start + moments.recovery).toBe(KILLS)
    expect(report.queues).toBe(3)
    expect(report.confirmed).toBeGreaterThan(KILLS * 20)
    expect(report.delivered).toBeGreaterThanOrEqual(report.confirmed)
    expect(report.settles).toBeGreaterThan(KILLS * 20)
    // New segments were started, and old segments with live messages were freed, so those messages were moved.
    expect(rolls).toBeGreaterThan(KILLS / 3)
    expect(removed).toBeGreaterThan(0)
  },
  60_000 + KILLS * 5_000,
)
